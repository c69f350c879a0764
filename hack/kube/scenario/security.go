package scenario

import (
	"fmt"
	"strings"

	v1 "k8s.io/api/core/v1"
)

var security = []Scenario{
	{Name: "users and groups", Run: users},
	{Name: "runAsNonRoot", Run: nonRoot},
	{Name: "capabilities, no_new_privs, seccomp, privileged", Run: privileges},
	{Name: "read-only root file system", Run: readOnlyRoot},
	{Name: "shared process namespace", Run: sharedPids},
	{Name: "host pid and ipc", Run: hostPids},
	{Name: "sysctls", Run: sysctls},
	{Name: "masked and read-only paths", Run: maskedPaths},
	{Name: "user namespaces", Run: userNamespaces},
}

func users(t *T) {
	numbers := sh("numbers", "id -u; id -g; id -G; cat /work/group 2>/dev/null; touch /work/x; stat -c %g /work/x")
	numbers.SecurityContext = &v1.SecurityContext{RunAsUser: ptr(int64(1000)), RunAsGroup: ptr(int64(3000))}
	p := withWork(once("users", numbers))
	p.Spec.SecurityContext = &v1.PodSecurityContext{FSGroup: ptr(int64(2000)), SupplementalGroups: []int64{4000}}
	// Kubelet passes the name of the image's user `app:shared` on, without the group: its groups are those of the
	// image's /etc/passwd and, with the policy Merge, /etc/group.
	ofImage := v1.Container{Name: "main", Image: image("users"), ImagePullPolicy: v1.PullNever, Command: []string{"sh", "-c", "id -u; id -g; id -G; pwd"}}
	merge, strict := once("users-merge", ofImage), once("users-strict", ofImage)
	strict.Spec.SecurityContext = &v1.PodSecurityContext{SupplementalGroupsPolicy: ptr(v1.SupplementalGroupsPolicyStrict), SupplementalGroups: []int64{4000}}
	t.run(p, merge, strict)
	for name, wanted := range map[string]string{
		"users numbers":     "1000\n3000\n3000 2000 4000 5000 5001\n2000\n",
		"users-merge main":  "1000\n1000\n1000 5000 5001\n/home/app/work\n",
		"users-strict main": "1000\n1000\n1000 4000\n/home/app/work\n",
	} {
		pod, container, _ := strings.Cut(name, " ")
		got := sortedGroups(t.output(pod, container))
		t.expect(got == sortedGroups(wanted), "%s: %q, not %q", name, got, wanted)
	}
	told := status(t.pod("users"), "numbers").User
	t.expect(told != nil && told.Linux != nil && told.Linux.UID == 1000 && told.Linux.GID == 3000, "user in status: %+v", told)
}

// sortedGroups makes the third line, the groups, comparable.
func sortedGroups(text string) string {
	lines := strings.Split(text, "\n")
	if len(lines) > 2 {
		lines[2] = fmt.Sprint(sorted(strings.Fields(lines[2])))
	}
	return strings.Join(lines, "\n")
}

func nonRoot(t *T) {
	refused, allowed := once("nonroot-refused", sh("main", "id -u")), once("nonroot", sh("main", "id -u"))
	refused.Spec.SecurityContext = &v1.PodSecurityContext{RunAsNonRoot: ptr(true)}
	allowed.Spec.SecurityContext = &v1.PodSecurityContext{RunAsNonRoot: ptr(true), RunAsUser: ptr(int64(7))}
	t.run(refused, allowed)
	t.expect(t.output("nonroot", "main") == "7\n", "not run as user 7")
	t.wait("nonroot-refused", "refused with a reason", func(p *v1.Pod) bool {
		w := status(p, "main").State.Waiting
		return w != nil && w.Reason == "CreateContainerConfigError" && strings.Contains(w.Message, "runAsNonRoot")
	})
}

func privileges(t *T) {
	script := "grep -E 'CapEff|NoNewPrivs|Seccomp:' /proc/self/status | awk '{print $2}' | tr '\\n' ' '"
	cases := []struct {
		name, wanted string
		context      v1.SecurityContext
	}{
		{"plain", "00000000a80425fb 0 0 ", v1.SecurityContext{}},
		{"default", "00000000a80425fb 0 2 ", v1.SecurityContext{SeccompProfile: &v1.SeccompProfile{Type: v1.SeccompProfileTypeRuntimeDefault}}},
		{"dropped", "0000000000000400 1 2 ", v1.SecurityContext{
			AllowPrivilegeEscalation: ptr(false), SeccompProfile: &v1.SeccompProfile{Type: v1.SeccompProfileTypeRuntimeDefault},
			Capabilities: &v1.Capabilities{Drop: []v1.Capability{"ALL"}, Add: []v1.Capability{"NET_BIND_SERVICE"}}}},
		{"nobody", "0000000000000000 0 0 ", v1.SecurityContext{RunAsUser: ptr(int64(1234))}},
	}
	p := once("privileges")
	for _, c := range cases {
		container := sh(c.name, script)
		container.SecurityContext = &c.context
		p.Spec.Containers = append(p.Spec.Containers, container)
	}
	privileged := sh("privileged", "mount -t tmpfs x /tmp && echo mounted; ls /dev | wc -l; "+script)
	privileged.SecurityContext = &v1.SecurityContext{Privileged: ptr(true)}
	p.Spec.Containers = append(p.Spec.Containers, privileged)
	t.run(p)
	for _, c := range cases {
		got := t.output("privileges", c.name)
		t.expect(got == c.wanted, "%s: %q, not %q", c.name, got, c.wanted)
	}
	t.expect(strings.HasPrefix(t.output("privileges", "privileged"), "mounted\n"), "privileged cannot mount")
}

func readOnlyRoot(t *T) {
	c := sh("main", "touch /x 2>&1; touch /etc/hosts 2>&1; touch /work/x && echo ok; true")
	c.SecurityContext = &v1.SecurityContext{ReadOnlyRootFilesystem: ptr(true)}
	t.run(withWork(once("readonly", c)))
	logs := t.output("readonly", "main")
	t.expect(strings.HasPrefix(logs, "touch: /x: Read-only file system\n") && strings.HasSuffix(logs, "ok\n"), "%q", logs)
}

func sharedPids(t *T) {
	p := pod("shared-pids", sh("one", "sleep 4321"), sh("two", idle))
	p.Spec.ShareProcessNamespace = ptr(true)
	t.run(p)
	t.ready("shared-pids")
	seen := t.execSync("shared-pids", "two", "ps")
	t.expect(strings.Contains(seen, "sleep 4321"), "one is not seen by two:\n%s", seen)
	first := t.execSync("shared-pids", "two", "cat", "/proc/1/cmdline")
	t.expect(!strings.Contains(first, "sleep"), "pid 1 is a container's: %q", first)
}

func hostPids(t *T) {
	p := pod("host-pids", sh("main", idle))
	p.Spec.HostPID, p.Spec.HostIPC, p.Spec.HostNetwork = true, true, true
	t.run(p)
	t.ready("host-pids")
	seen := t.execSync("host-pids", "main", "ps")
	t.expect(strings.Contains(seen, "kubelet"), "kubelet is not seen:\n%s", seen)
}

func sysctls(t *T) {
	p := once("sysctls", sh("main", "cat /proc/sys/kernel/shm_rmid_forced /proc/sys/net/ipv4/ip_local_port_range /proc/sys/net/core/somaxconn"))
	p.Spec.SecurityContext = &v1.PodSecurityContext{Sysctls: []v1.Sysctl{
		{Name: "kernel.shm_rmid_forced", Value: "1"}, {Name: "net.ipv4.ip_local_port_range", Value: "2000 3000"}, {Name: "net.core.somaxconn", Value: "77"}}}
	t.run(p)
	logs := strings.Fields(t.output("sysctls", "main"))
	t.expect(strings.Join(logs, " ") == "1 2000 3000 77", "%v", logs)
}

func maskedPaths(t *T) {
	t.run(once("masked", sh("main", "cd /proc; for f in kcore keys timer_list latency_stats sched_debug; do test ! -e $f || cat $f; done; ls scsi /sys/firmware 2>/dev/null; (echo 1 > sys/kernel/panic) 2>&1 | grep -c 'Read-only'")))
	logs := t.output("masked", "main")
	t.expect(strings.HasSuffix(logs, "1\n") && !strings.Contains(logs, "seq") && len(logs) < 40, "%q", logs)
}

func userNamespaces(t *T) {
	p := withWork(once("userns", sh("main", "cat /proc/self/uid_map; id -u; touch /work/x; stat -c %u /work/x /etc/hostname /; mount -t tmpfs x /tmp 2>&1; true")))
	p.Spec.HostUsers = ptr(false)
	t.run(p)
	logs := strings.Fields(t.output("userns", "main"))
	t.expect(len(logs) > 6 && logs[0] == "0" && logs[1] != "0" && logs[2] == "65536" && logs[3] == "0" && logs[4] == "0", "%v", logs)
}
