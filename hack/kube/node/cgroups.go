package node

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
)

const cgroupMount = "/sys/fs/cgroup"

// The two who may make control groups, as kubelet names them.
const (
	cgroupfs = "cgroupfs"
	systemd  = "systemd"
)

// Driver is who makes control groups on this machine: systemd where it manages version 2, as Slipway decides it.
var Driver = sync.OnceValue(func() string {
	if _, err := os.Stat("/run/systemd/system"); err == nil && hierarchies()[0] == cgroupMount {
		return systemd
	}
	return cgroupfs
})

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

// slice is the unit of the node's control group; its name has no dash, which would make it another one's child.
func (n *Node) slice() string { return strings.TrimPrefix(n.CgroupRoot, "/") + ".slice" }

// cgroup is the node's control group within a hierarchy.
func (n *Node) cgroup() string {
	if Driver() == systemd {
		return "/" + n.slice()
	}
	return n.CgroupRoot
}

// makeCgroups makes the group that kubelet expects to exist.
func (n *Node) makeCgroups() error {
	if Driver() == systemd {
		return systemctl("start", n.slice())
	}
	for _, hierarchy := range hierarchies() {
		if err := delegate(hierarchy); err != nil {
			return err
		}
		dir := hierarchy + n.CgroupRoot
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		if err := inheritCpuset(hierarchy, dir); err != nil {
			return err
		}
	}
	return nil
}

func systemctl(words ...string) error {
	if out, err := exec.Command("systemctl", words...).CombinedOutput(); err != nil {
		return fmt.Errorf("systemctl %s: %w\n%s", strings.Join(words, " "), err, out)
	}
	return nil
}

// inheritCpuset: cpusets of v1 begin empty and would hold nobody.
func inheritCpuset(hierarchy, dir string) error {
	for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
		value, err := os.ReadFile(filepath.Join(hierarchy, file))
		if err != nil || len(strings.TrimSpace(string(value))) == 0 {
			continue
		}
		if err := os.WriteFile(filepath.Join(dir, file), value, 0o644); err != nil {
			return err
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
func (n *Node) removeCgroups() error {
	var errs []error
	if Driver() == systemd {
		// Slices of pods are started units, too.
		errs = append(errs, systemctl("stop", n.slice()))
	}
	for _, hierarchy := range hierarchies() {
		for _, dir := range slices.Backward(groupsBelow(hierarchy + n.cgroup())) {
			if err := syscall.Rmdir(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
				errs = append(errs, fmt.Errorf("left behind: cgroup %s: %w", dir, err))
			}
		}
	}
	return errors.Join(errs...)
}

// groupsBelow are a control group and all below it, parents first.
func groupsBelow(top string) (groups []string) {
	_ = filepath.WalkDir(top, func(path string, entry fs.DirEntry, err error) error {
		if err == nil && entry.IsDir() {
			groups = append(groups, path)
		}
		return nil
	})
	return groups
}

// containerGroups are the groups of containers; pods' own are kubelet's to remove.
func (n *Node) containerGroups(hierarchy string) (groups []string) {
	top := hierarchy + n.cgroup()
	if Driver() == systemd {
		return slices.DeleteFunc(groupsBelow(top), func(group string) bool { return !strings.HasSuffix(group, ".scope") })
	}
	for _, pattern := range []string{"/kubepods/pod*/*", "/kubepods/*/pod*/*", "/pod*"} {
		found, _ := filepath.Glob(top + pattern)
		for _, group := range found {
			if info, err := os.Stat(group); err == nil && info.IsDir() {
				groups = append(groups, group)
			}
		}
	}
	return groups
}
