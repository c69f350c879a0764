package node

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	insideMark = "SLIPWAY_KUBE_NODE_DIR"
	// Address is the node's own; kubelet refuses loopback.
	Address = "192.0.2.1"
)

// Dir is the directory that everything below belongs to; set once Enter has said ready.
func Dir() string { return os.Getenv(insideMark) }

// Enter makes the namespaces of a node: the first call starts this program again in new ones, waits for it and leaves
// with its exit code; there it prepares them and answers true. The directory is removed when the program ends.
//
// The mount namespace keeps the mounts of kubelet and runtime away from the machine and lets /var/log and some files of
// /proc/sys be ours; the network namespace holds bridge, rules, ports and net.* sysctls.
func Enter(prefix string) (ready bool, err error) {
	if Dir() != "" {
		return true, prepare(Dir())
	}
	dir, err := os.MkdirTemp(filepath.Dir(prefix), filepath.Base(prefix)+"-")
	if err != nil {
		return false, err
	}
	again := exec.Command("/proc/self/exe", os.Args[1:]...)
	again.Env = append(os.Environ(), insideMark+"="+dir)
	again.Stdin, again.Stdout, again.Stderr = os.Stdin, os.Stdout, os.Stderr
	again.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS}
	// A terminal's Ctrl-C reaches the child by itself; it decides when to end.
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	if err := again.Start(); err != nil {
		return false, fmt.Errorf("start in new namespaces (run as root): %w", err)
	}
	go func() {
		for s := range signals {
			if s == syscall.SIGTERM {
				_ = again.Process.Signal(s)
			}
		}
	}()
	err = again.Wait()
	if os.Getenv("KEEP") == "" {
		err = errors.Join(err, os.RemoveAll(dir))
	}
	return false, err
}

// prepare sets up fresh namespaces: shared propagation inside (pods may ask for Bidirectional), a /var/log of our own,
// loopback, and an address with a default route as kubelet wants one.
func prepare(dir string) error {
	if err := unix.Mount("", "/", "", unix.MS_SHARED|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("make / shared: %w", err)
	}
	logs := filepath.Join(dir, "var-log")
	if err := os.MkdirAll(logs, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(logs, "/var/log", "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind %s on /var/log: %w", logs, err)
	}
	return network()
}

func network() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("lo: %w", err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return fmt.Errorf("lo up: %w", err)
	}
	// A veth pair looks like a network card with a cable; its other end stands for the router.
	pair := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "node0"}, PeerName: "router0"}
	if err := netlink.LinkAdd(pair); err != nil {
		return fmt.Errorf("veth node0: %w", err)
	}
	peer, err := netlink.LinkByName("router0")
	if err != nil {
		return err
	}
	address, err := netlink.ParseAddr(Address + "/24")
	if err != nil {
		return err
	}
	for _, step := range []func() error{
		func() error { return netlink.AddrAdd(pair, address) },
		func() error { return netlink.LinkSetUp(pair) },
		func() error { return netlink.LinkSetUp(peer) },
		func() error {
			return netlink.RouteAdd(&netlink.Route{LinkIndex: pair.Attrs().Index, Gw: net.IPv4(192, 0, 2, 254)})
		},
	} {
		if err := step(); err != nil {
			return fmt.Errorf("node0: %w", err)
		}
	}
	return nil
}

// tunables are what kubelet writes into /proc/sys at its start (it has no switch against it): it shall see them set
// already, so that the machine's own stay as they are. Names and values: k8s.io/component-helpers/node/util/sysctl.
var tunables = map[string]string{
	"vm/overcommit_memory": "1", "vm/panic_on_oom": "0", "kernel/panic": "10", "kernel/panic_on_oops": "1",
	"kernel/keys/root_maxkeys": "1000000", "kernel/keys/root_maxbytes": "25000000",
}

// shadowTunables is a shell command that binds files over the tunables in a mount namespace of kubelet alone: in the
// runtime's they would make the kernel refuse a fresh /proc to user namespaces.
func shadowTunables(dir string) (string, error) {
	script := []string{"set -e", "mount --make-private /proc"}
	for name, value := range tunables {
		file := filepath.Join(dir, strings.ReplaceAll(name, "/", "."))
		if err := os.WriteFile(file, []byte(value+"\n"), 0o644); err != nil {
			return "", err
		}
		script = append(script, fmt.Sprintf("mount --bind %s /proc/sys/%s", file, name))
	}
	// cAdvisor does not start where no processor tells its clock, as in user-mode Linux (hack/vm).
	cpus := filepath.Join(dir, "cpuinfo")
	script = append(script, "grep -q 'cpu MHz' /proc/cpuinfo || { (cat /proc/cpuinfo; echo 'cpu MHz : 1000.0') > "+cpus+
		"; mount --bind "+cpus+" /proc/cpuinfo; }")
	return strings.Join(script, "\n"), nil
}
