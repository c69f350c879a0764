package node

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// The runtimes a node can have.
const (
	Slipway    = "slipway"
	Containerd = "containerd"
)

// Everything is found from the repository: hack/kubelet runs us there.
const (
	binDir   = "hack/bin"
	imageDir = ".cache/images"
)

func (n *Node) slipwayConfig() string {
	root := n.CgroupRoot
	if Driver() == systemd {
		root = n.slice()
	}
	config := fmt.Sprintf("cgroup_root = %q\n[keeper]\npath = %q\n[cni]\nconf_dir = %q\n",
		root, n.slipwayBin(Keeper), n.Path("cni"))
	return config + n.options.RuntimeConfig
}

// Slipway's programs: the daemon, and the parent of all containers.
const (
	Daemon = "slipway"
	Keeper = "containerd-shim-slipway-v1"
)

func (n *Node) slipwayBin(name string) string {
	if n.options.OwnBinaries {
		return n.Path("bin/" + name)
	}
	return built(name)
}

func built(name string) string {
	dir := os.Getenv("SLIPWAY_BIN_DIR")
	if dir == "" {
		dir = "target/debug"
	}
	path, _ := filepath.Abs(filepath.Join(dir, name))
	return path
}

// Install puts new files in the place of the node's own programs, as a package's upgrade does.
func (n *Node) Install() error {
	for _, name := range []string{Daemon, Keeper} {
		text, err := os.ReadFile(built(name))
		if err != nil {
			return err
		}
		if err := os.MkdirAll(n.Path("bin"), 0o755); err != nil {
			return err
		}
		fresh := n.Path("bin/." + name)
		if err := os.WriteFile(fresh, text, 0o755); err != nil {
			return err
		}
		if err := os.Rename(fresh, n.slipwayBin(name)); err != nil {
			return err
		}
	}
	return nil
}

// Runs tells whether a process is of the file that is installed as `name` now.
func (n *Node) Runs(pid int, name string) bool {
	running, err := os.Stat(fmt.Sprintf("/proc/%d/exe", pid))
	if err != nil {
		return false
	}
	installed, err := os.Stat(n.slipwayBin(name))
	return err == nil && os.SameFile(running, installed)
}

// Debian's containerd 1.6 with runc; oom_score_adj is kept from falling below ours where we may not lower it.
func (n *Node) containerdConfig() string {
	return fmt.Sprintf(`version = 2
root = %q
state = %q
[grpc]
address = %q
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "test.local/pause:1"
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/usr/lib/cni"
conf_dir = %q
`, n.Path("root"), n.Path("state"), n.Socket(), n.Path("cni"))
}

// bridgeCni is the CNI configuration that both runtimes get where they are compared; portmap follows where it can work.
const (
	bridgeCni = `{"cniVersion": "1.0.0", "name": "kube", "plugins": [
  {"type": "bridge", "bridge": "cni-kube", "isDefaultGateway": true, "ipMasq": false,
   "ipam": {"type": "host-local", "dataDir": %q, "ranges": [[{"subnet": "10.99.0.0/16"}]]}}%s]}
`
	portmapCni = `,
  {"type": "portmap", "capabilities": {"portMappings": true}}`
)

// Translates says whether this kernel has NAT for IPv4: user-mode Linux (hack/vm) has not. The rules are this network
// namespace's own, and gone again.
var Translates = sync.OnceValue(func() bool {
	add := exec.Command("nft", "add table ip probe; add chain ip probe nat { type nat hook postrouting priority 100; }; delete table ip probe")
	return add.Run() == nil
})

func (n *Node) newRuntime() (*Process, error) {
	config := n.slipwayConfig()
	args := []string{n.slipwayBin(Daemon), "serve", "--root", n.Path("root"), "--state", n.Path("state"),
		"--address", n.Socket(), "--config", n.Path("config.toml")}
	if n.options.Runtime == Containerd {
		config, args = n.containerdConfig(), []string{"containerd", "--config", n.Path("config.toml")}
	}
	if err := os.WriteFile(n.Path("config.toml"), []byte(config), 0o644); err != nil {
		return nil, err
	}
	if n.options.Runtime == Containerd || n.options.CNI || !Translates() {
		portmap := ""
		if Translates() {
			portmap = portmapCni
		}
		conflist := fmt.Sprintf(bridgeCni, n.Path("ipam"), portmap)
		if err := os.WriteFile(n.Path("cni/10-kube.conflist"), []byte(conflist), 0o644); err != nil {
			return nil, err
		}
	}
	return newProcess(n.options.Runtime, n.Path("runtime.log"), func() *exec.Cmd { return exec.Command(args[0], args[1:]...) }), nil
}

// StartRuntime starts it (again) and returns when it answers as ready.
func (n *Node) StartRuntime(ctx context.Context) error {
	if err := n.Runtime.Start(); err != nil {
		return err
	}
	return n.Runtime.waitUntil(ctx, 30*time.Second, func(ctx context.Context) error {
		status, err := n.CRI.Status(ctx, &cri.StatusRequest{})
		if err != nil {
			return err
		}
		for _, c := range status.Status.Conditions {
			if !c.Status {
				return fmt.Errorf("%s: %s", c.Type, c.Message)
			}
		}
		return nil
	})
}

func (n *Node) connect() error {
	connection, err := grpc.NewClient("unix://"+n.Socket(), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(16<<20)))
	if err != nil {
		return err
	}
	n.connection, n.CRI, n.Images = connection, cri.NewRuntimeServiceClient(connection), cri.NewImageServiceClient(connection)
	return nil
}

// Import brings the test images of hack/images into the runtime's store as test.local/NAME:1.
func (n *Node) Import(names ...string) error {
	for _, name := range names {
		archive := filepath.Join(imageDir, name+".tar")
		command := exec.Command(n.slipwayBin(Daemon), "--address", n.Socket(), "import", archive, "--name", Image(name))
		if n.options.Runtime == Containerd {
			command = exec.Command("ctr", "-a", n.Socket(), "-n", "k8s.io", "images", "import", archive)
		}
		if out, err := command.CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w\n%s", strings.Join(command.Args, " "), err, out)
		}
	}
	return nil
}

// Image is the name of a test image.
func Image(name string) string { return "test.local/" + name + ":1" }
