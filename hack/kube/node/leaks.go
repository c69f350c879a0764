package node

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const cgroupMount = "/sys/fs/cgroup"

// hierarchies are the mount points of cgroup v1's controllers, or the one of v2.
func hierarchies() []string {
	if _, err := os.Stat(cgroupMount + "/cgroup.controllers"); err == nil {
		return []string{cgroupMount}
	}
	mounts, _ := filepath.Glob(cgroupMount + "/*")
	return slices.DeleteFunc(mounts, func(m string) bool {
		_, err := os.Stat(m + "/cgroup.procs")
		return err != nil
	})
}

// makeCgroups makes the group that kubelet expects to exist; cpusets of v1 begin empty and would hold nobody.
func makeCgroups(root string) error {
	for _, hierarchy := range hierarchies() {
		dir := hierarchy + root
		if err := delegate(hierarchy); err != nil {
			return err
		}
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
			value, err := os.ReadFile(filepath.Join(hierarchy, file))
			if err != nil || len(strings.TrimSpace(string(value))) == 0 {
				continue
			}
			if err := os.WriteFile(filepath.Join(dir, file), value, 0o644); err != nil {
				return err
			}
		}
	}
	return nil
}

// delegate lets groups below the top have all controllers, as systemd does at its start, where version 2 is all there is.
func delegate(top string) error {
	if top != cgroupMount {
		return nil
	}
	controllers, err := os.ReadFile(filepath.Join(top, "cgroup.controllers"))
	if err != nil {
		return err
	}
	for _, name := range strings.Fields(string(controllers)) {
		if err := os.WriteFile(filepath.Join(top, "cgroup.subtree_control"), []byte("+"+name), 0o644); err != nil {
			return fmt.Errorf("controller %s: %w", name, err)
		}
	}
	return nil
}

// removeCgroups removes the group and what kubelet made below it.
func removeCgroups(root string) error {
	var errs []error
	for _, hierarchy := range hierarchies() {
		var dirs []string
		_ = filepath.WalkDir(hierarchy+root, func(path string, entry fs.DirEntry, err error) error {
			if err == nil && entry.IsDir() {
				dirs = append(dirs, path)
			}
			return nil
		})
		slices.Reverse(dirs)
		for _, dir := range dirs {
			if err := syscall.Rmdir(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
				errs = append(errs, fmt.Errorf("left behind: cgroup %s: %w", dir, err))
			}
		}
	}
	return errors.Join(errs...)
}

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
	found = append(found, n.containerCgroups()...)
	links, _ := os.ReadDir("/sys/class/net")
	for _, link := range links {
		if strings.HasPrefix(link.Name(), "veth") || link.Name() == "slipway0" {
			found = append(found, "network link "+link.Name())
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

// containerCgroups are the groups below pods: pods' own are kubelet's to remove, and it was stopped.
func (n *Node) containerCgroups() []string {
	var found []string
	for _, hierarchy := range hierarchies() {
		for _, pattern := range []string{"/kubepods/pod*/*", "/kubepods/*/pod*/*", "/pod*"} {
			groups, _ := filepath.Glob(hierarchy + n.CgroupRoot + pattern)
			for _, group := range groups {
				if info, err := os.Stat(group); err == nil && info.IsDir() {
					found = append(found, "cgroup "+group)
				}
			}
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
