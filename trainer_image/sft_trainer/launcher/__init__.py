"""PID 1 of a trainer pod: fence, prepare, torchrun, publish, and one outcome at the end. Imports no torch itself."""
