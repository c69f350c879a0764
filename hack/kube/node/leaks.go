package node

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// leaks is what still belongs to the stopped node; what ends by itself gets patience to do so. Left processes are
// killed and left mounts undone, so that one node does not spoil the next.
func (n *Node) leaks(patience time.Duration) []string {
	var found []string
	for end := time.Now().Add(patience); ; time.Sleep(100 * time.Millisecond) {
		if found = n.look(); len(found) == 0 || time.Now().After(end) {
			break
		}
	}
	for pid := range processesOf(n.Dir) {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	unmountBelow(n.Dir)
	return found
}

func (n *Node) look() []string {
	var found []string
	for pid, command := range processesOf(n.Dir) {
		found = append(found, fmt.Sprintf("process %d: %s", pid, command))
	}
	for _, mount := range mountsBelow(n.Dir) {
		found = append(found, "mount "+mount)
	}
	for _, hierarchy := range hierarchies() {
		for _, group := range n.containerGroups(hierarchy) {
			found = append(found, "cgroup "+group)
		}
	}
	// Not from /sys/class/net, which shows the machine's own.
	links, _ := net.Interfaces()
	for _, link := range links {
		if strings.HasPrefix(link.Name, "veth") || link.Name == "slipway0" {
			found = append(found, "network link "+link.Name)
		}
	}
	tables, _ := exec.Command("nft", "list", "tables").Output()
	for _, line := range strings.Split(string(tables), "\n") {
		if strings.Contains(line, "slipway") {
			found = append(found, "nft "+line)
		}
	}
	for _, sub := range []string{"state/netns", "state/pods", "state/containers", "root/containers", "root/sandboxes"} {
		entries, _ := os.ReadDir(n.Path(sub))
		for _, e := range entries {
			found = append(found, "file "+sub+"/"+e.Name())
		}
	}
	return found
}

// processesOf are those whose command line or keeper's environment names the directory; by pid their command line.
func processesOf(dir string) map[int]string {
	found := map[int]string{}
	entries, _ := os.ReadDir("/proc")
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		command, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		environment, _ := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
		if strings.Contains(string(command), dir+"/") || strings.Contains(string(environment), "SLIPWAY_KEEPER_STATE="+dir+"/") {
			found[pid] = strings.TrimSpace(strings.ReplaceAll(string(command), "\x00", " "))
		}
	}
	return found
}

func mountsBelow(dir string) []string {
	table, _ := os.ReadFile("/proc/self/mountinfo")
	var found []string
	for _, line := range strings.Split(string(table), "\n") {
		if fields := strings.Fields(line); len(fields) > 4 && strings.HasPrefix(fields[4], dir+"/") {
			found = append(found, fields[4])
		}
	}
	return found
}

// unmountBelow undoes mounts, the newest first: volumes that a stopped kubelet would have unmounted.
func unmountBelow(dir string) {
	mounts := mountsBelow(dir)
	for _, mount := range slices.Backward(mounts) {
		_ = syscall.Unmount(mount, syscall.MNT_DETACH)
	}
}
