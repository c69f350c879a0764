// Package node is one node: a container runtime and a kubelet, with everything they own below one directory and one
// control group, and the check of what they leave behind.
package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"google.golang.org/grpc"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	kubeletconfig "k8s.io/kubelet/config/v1beta1"
)

// Options is what a scenario wants of its node beside the defaults.
type Options struct {
	// Runtime is Slipway (nothing given) or Containerd.
	Runtime string
	// RuntimeConfig is appended to Slipway's configuration.
	RuntimeConfig string
	// CNI: the bridge plugin instead of Slipway's built-in bridge.
	CNI bool
	// Images are the test images to import; nothing given: busybox and witness.
	Images []string
	// Kubelet changes its configuration.
	Kubelet func(*kubeletconfig.KubeletConfiguration)
	// SmallDisk: the runtime's root is a file system of this many bytes (tmpfs).
	SmallDisk int64
	// API: kubelet has a stand-in for an API server, beside its folder.
	API bool
	// OwnBinaries: the node runs copies of Slipway's programs, which [Node.Install] can replace.
	OwnBinaries bool
	// Logind: kubelet finds a stand-in for systemd-logind on a system bus of its own.
	Logind bool
}

// Node is a running node.
type Node struct {
	// Dir holds everything.
	Dir string
	// CgroupRoot is the control group that kubelet works below, by kubelet's name for it.
	CgroupRoot string
	Runtime    *Process
	Kubelet    *Process
	API        *API
	CRI        cri.RuntimeServiceClient
	Images     cri.ImageServiceClient
	StandIn    *StandIn
	Logind     *Logind

	options    Options
	connection *grpc.ClientConn
}

// Start makes a node in a new directory below Dir() and returns when kubelet is healthy; what was made is taken down
// again on an error.
func Start(ctx context.Context, options Options) (*Node, error) {
	if options.Runtime == "" {
		options.Runtime = Slipway
	}
	if len(options.Images) == 0 {
		options.Images = []string{"busybox", "witness"}
	}
	dir, err := os.MkdirTemp(Dir(), "n")
	if err != nil {
		return nil, err
	}
	n := &Node{Dir: dir, CgroupRoot: "/" + strings.ReplaceAll(filepath.Base(Dir())+filepath.Base(dir), "-", "_"), API: newAPI(), options: options}
	if err := n.start(ctx); err != nil {
		return nil, errors.Join(err, n.Stop(context.WithoutCancel(ctx)))
	}
	return n, nil
}

func (n *Node) start(ctx context.Context) error {
	for _, sub := range []string{"root", "state", "cni", "manifests", "pod-logs", "kubelet", "tunables", "volume-plugins"} {
		if err := os.MkdirAll(n.Path(sub), 0o755); err != nil {
			return err
		}
	}
	if size := n.options.SmallDisk; size > 0 {
		if err := syscall.Mount("small", n.Path("root"), "tmpfs", 0, fmt.Sprintf("size=%d", size)); err != nil {
			return fmt.Errorf("small file system: %w", err)
		}
	}
	if err := n.makeCgroups(); err != nil {
		return err
	}
	if n.options.OwnBinaries {
		if err := n.Install(); err != nil {
			return err
		}
	}
	if err := n.connect(); err != nil {
		return err
	}
	var err error
	if n.Runtime, err = n.newRuntime(); err != nil {
		return err
	}
	if n.options.API {
		if n.StandIn, err = startStandIn(); err != nil {
			return err
		}
	}
	if n.options.Logind {
		if n.Logind, err = startLogind(ctx, n.Path("logind")); err != nil {
			return err
		}
	}
	if n.Kubelet, err = n.newKubelet(); err != nil {
		return err
	}
	if err := n.StartRuntime(ctx); err != nil {
		return err
	}
	if err := n.Import(n.options.Images...); err != nil {
		return err
	}
	return n.StartKubelet(ctx)
}

// Path is below the node's directory.
func (n *Node) Path(sub string) string { return filepath.Join(n.Dir, sub) }

// Socket is the runtime's.
func (n *Node) Socket() string { return n.Path("runtime.sock") }

// Stop ends kubelet, removes all pods, ends the runtime and answers what was left behind as an error.
func (n *Node) Stop(ctx context.Context) error {
	var errs []error
	if n.Kubelet != nil {
		errs = append(errs, n.Kubelet.Stop(syscall.SIGTERM))
	}
	if n.StandIn != nil {
		errs = append(errs, n.StandIn.server.Close())
	}
	if n.Logind != nil {
		errs = append(errs, n.Logind.stop())
	}
	if n.Runtime != nil {
		if !n.Runtime.Running() {
			errs = append(errs, n.StartRuntime(ctx))
		}
		errs = append(errs, n.removePods(ctx), n.Runtime.Stop(syscall.SIGTERM))
	}
	if n.connection != nil {
		n.connection.Close()
	}
	unmountBelow(n.Path("kubelet"))
	if n.options.SmallDisk > 0 {
		_ = syscall.Unmount(n.Path("root"), syscall.MNT_DETACH)
	}
	for _, leak := range n.leaks(10 * time.Second) {
		errs = append(errs, errors.New("left behind: "+leak))
	}
	errs = append(errs, n.removeCgroups())
	return errors.Join(errs...)
}

func (n *Node) removePods(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	pods, err := n.CRI.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{})
	if err != nil {
		return err
	}
	for _, pod := range pods.Items {
		if _, err := n.CRI.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: pod.Id}); err != nil {
			return err
		}
		if _, err := n.CRI.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: pod.Id}); err != nil {
			return err
		}
	}
	return nil
}
