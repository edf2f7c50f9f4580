// Command provisioner makes a folder for each claim of the local cluster's storage class, and removes it with the claim.
//
// It runs as root in a pod that mounts the folder of all claims where it lies on the nodes. What goes wrong stands in
// the claim's events: the library below writes them, watches claims and volumes, and tries again.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"log"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/sig-storage-lib-external-provisioner/v13/controller"
)

const provisioner = "sftjob.dev/folder"

// folder holds all claims: the same folder under the same path on every node. The library refuses claims for block
// devices, because folder is no controller.BlockProvisioner.
type folder string

// Provision makes what real storage gives: a folder that only root writes until kubelet applies a pod's fsGroup.
func (f folder) Provision(
	_ context.Context, asked controller.ProvisionOptions,
) (*v1.PersistentVolume, controller.ProvisioningState, error) {
	claim := asked.PVC.Spec
	if claim.Selector != nil || claim.DataSource != nil || claim.DataSourceRef != nil {
		return nil, controller.ProvisioningFinished, fmt.Errorf(
			"spec.selector, spec.dataSource, spec.dataSourceRef: %s makes new, empty folders only; remove them", provisioner)
	}
	path := filepath.Join(string(f), asked.PVName)
	// One that is there already was made for this very claim, whose UID is in the name, before a restart.
	if err := os.Mkdir(path, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, controller.ProvisioningFinished, err
	}
	mode := v1.PersistentVolumeFilesystem
	anyNode := v1.NodeSelectorRequirement{Key: v1.LabelHostname, Operator: v1.NodeSelectorOpExists}
	return &v1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: asked.PVName},
		Spec: v1.PersistentVolumeSpec{
			AccessModes:                   claim.AccessModes,
			Capacity:                      v1.ResourceList{v1.ResourceStorage: claim.Resources.Requests[v1.ResourceStorage]},
			VolumeMode:                    &mode,
			PersistentVolumeReclaimPolicy: *asked.StorageClass.ReclaimPolicy,
			// Not hostPath: there kubelet ignores fsGroup, and a pod's missing permission would not show.
			PersistentVolumeSource: v1.PersistentVolumeSource{Local: &v1.LocalVolumeSource{Path: path}},
			NodeAffinity: &v1.VolumeNodeAffinity{Required: &v1.NodeSelector{
				NodeSelectorTerms: []v1.NodeSelectorTerm{{MatchExpressions: []v1.NodeSelectorRequirement{anyNode}}},
			}},
		},
	}, controller.ProvisioningFinished, nil
}

// Delete removes the folder that carries the volume's name, and nothing else whatever path the volume gives.
func (f folder) Delete(_ context.Context, volume *v1.PersistentVolume) error {
	path := filepath.Join(string(f), volume.Name)
	// The base is the name only where the path is a direct child.
	if filepath.Base(path) != volume.Name || volume.Spec.Local == nil || volume.Spec.Local.Path != path {
		return fmt.Errorf("spec.local.path: not %s, which alone would be removed with this volume", path)
	}
	return os.RemoveAll(path)
}

func main() {
	path := flag.String("folder", "", "absolute path of the folder that claims lie in, the same on every node")
	flag.Parse()
	if known, err := os.Stat(*path); !filepath.IsAbs(*path) || err != nil || !known.IsDir() {
		log.Fatalf("-folder %q: not an absolute path of a folder", *path)
	}
	// Modes are as written: a umask would take from them.
	syscall.Umask(0)
	config, err := rest.InClusterConfig()
	if err != nil {
		log.Fatal(err)
	}
	// As process 1 of its container it would not end at a signal that it doesn't ask for.
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	client := kubernetes.NewForConfigOrDie(config)
	claims := folder(filepath.Clean(*path))
	controller.NewProvisionController(ctx, client, provisioner, claims, controller.LeaderElection(false)).Run(ctx)
}
