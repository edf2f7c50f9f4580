// Command pause holds namespaces open until it is told to stop. As process 1 of a process namespace it also
// takes in the orphans: nobody else would ever collect them.
package main

import (
	"os"
	"os/signal"
	"syscall"
)

func main() {
	told := make(chan os.Signal, 16)
	signal.Notify(told, syscall.SIGINT, syscall.SIGTERM, syscall.SIGCHLD)
	for reason := range told {
		if reason != syscall.SIGCHLD {
			return
		}
		for {
			ended, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil)
			if ended <= 0 && err != syscall.EINTR {
				break
			}
		}
	}
}
