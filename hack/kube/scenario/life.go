package scenario

import (
	"fmt"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

var life = []Scenario{
	{Name: "init containers run in order", Run: initContainers},
	{Name: "a failing init container is repeated", Run: failingInit},
	{Name: "sidecars start first and end last", Run: sidecars},
	{Name: "restart with back-off, exit codes in status", Run: backOff},
	{Name: "restart policies", Run: restartPolicies},
	{Name: "OOMKilled in status", Run: oomKilled},
	{Name: "termination message", Run: terminationMessage},
	{Name: "graceful termination with preStop", Run: preStop},
	{Name: "a preStop hook that hangs, a container that ignores signals", Run: stubborn},
	{Name: "stop signals", Run: stopSignals},
	{Name: "postStart hook", Run: postStart},
	{Name: "twenty containers in one pod", Run: manyContainers},
	{Name: "environment and downward API", Run: environment},
	{Name: "CRI: ids, log paths and times are sound", Run: soundCRI},
}

func initContainers(t *T) {
	p := once("init-order", sh("main", "cat /work/order"))
	for _, name := range []string{"one", "two", "three"} {
		p.Spec.InitContainers = append(p.Spec.InitContainers, sh(name, "echo "+name+" >> /work/order"))
	}
	t.run(withWork(p))
	logs := t.output("init-order", "main")
	t.expect(logs == "one\ntwo\nthree\n", "order: %q", logs)
	for _, s := range t.pod("init-order").Status.InitContainerStatuses {
		t.expect(s.State.Terminated != nil && s.State.Terminated.Reason == "Completed", "%s: %+v", s.Name, s.State)
	}
}

func failingInit(t *T) {
	p := pod("init-fails", sh("main", idle))
	p.Spec.InitContainers = []v1.Container{sh("third-time", `test -e /work/3 || { test -e /work/2 && touch /work/3; test -e /work/1 && touch /work/2; touch /work/1; echo "not yet"; exit 7; }`)}
	t.run(withWork(p))
	t.wait("init-fails", "seen failing with code 7", func(p *v1.Pod) bool {
		s := status(p, "third-time")
		last := s.LastTerminationState.Terminated
		return !running(p, "main") && last != nil && last.ExitCode == 7
	})
	s := status(t.ready("init-fails"), "third-time")
	t.expect(s.RestartCount == 3, "restarts: %d", s.RestartCount)
}

func sidecars(t *T) {
	p := once("sidecars", sh("main", `sleep 6; wget -qO- http://127.0.0.1:8080/healthz`))
	side := witness("server", "serve")
	side.RestartPolicy = ptr(v1.ContainerRestartPolicyAlways)
	side.StartupProbe = &v1.Probe{ProbeHandler: httpGet("/healthz", 8080), PeriodSeconds: 1}
	crash := sh("crashes", "sleep 2; exit 3")
	crash.RestartPolicy = ptr(v1.ContainerRestartPolicyAlways)
	late := sh("late", `trap 'echo told to stop; exit 0' TERM; while :; do sleep 0.2; done`)
	late.RestartPolicy = ptr(v1.ContainerRestartPolicyAlways)
	p.Spec.InitContainers = []v1.Container{side, late, crash}
	t.run(p)
	t.wait("sidecars", "seen with a sidecar restarted while main runs", func(p *v1.Pod) bool {
		return running(p, "main") && status(p, "crashes").RestartCount > 0
	})
	logs := t.output("sidecars", "main")
	t.expect(logs == "ok\n", "main could not use its sidecar: %q", logs)
	ends := t.pod("sidecars")
	main := status(ends, "main").State.Terminated
	for _, name := range []string{"server", "late"} {
		end := status(ends, name).State.Terminated
		t.expect(end != nil && main != nil && !end.FinishedAt.Before(&main.FinishedAt), "%s ended before main: %+v, %+v", name, end, main)
	}
	said := t.logs("sidecars", "late")
	t.expect(said == "told to stop\n", "late: %q", said)
}

func backOff(t *T) {
	t.run(pod("backoff", sh("main", "echo attempt; exit 42")))
	p := t.wait("backoff", "in CrashLoopBackOff with 3 restarts", func(p *v1.Pod) bool {
		s := status(p, "main")
		return s.RestartCount >= 3 && s.State.Waiting != nil && s.State.Waiting.Reason == "CrashLoopBackOff"
	})
	last := status(p, "main").LastTerminationState.Terminated
	t.expect(last != nil && last.ExitCode == 42 && last.Reason == "Error", "last state: %+v", last)
	t.expect(last.FinishedAt.After(time.Now().Add(-time.Minute)) && !last.FinishedAt.Before(&last.StartedAt), "times: %+v", last)
	t.expect(strings.Contains(last.ContainerID, "://"), "container id %q", last.ContainerID)
}

func restartPolicies(t *T) {
	fails := once("never", sh("main", "exit 5"))
	onFailure := once("on-failure", sh("main", "test -e /work/x && exit 0; touch /work/x; exit 5"))
	onFailure.Spec.RestartPolicy = v1.RestartPolicyOnFailure
	signalled := once("signalled", sh("main", "sleep 100 & kill -SEGV $!; wait $!; exit $?"))
	t.run(fails, withWork(onFailure), signalled)
	p := t.wait("never", "failed", failed)
	end := status(p, "main").State.Terminated
	t.expect(end != nil && end.ExitCode == 5, "never: %+v", end)
	p = t.wait("on-failure", "succeeded", succeeded)
	t.expect(status(p, "main").RestartCount == 1, "on-failure: %d restarts", status(p, "main").RestartCount)
	end = status(t.wait("signalled", "failed", failed), "main").State.Terminated
	t.expect(end != nil && end.ExitCode == 139, "killed by a signal: %+v", end)
}

func oomKilled(t *T) {
	eats := witness("eats", "eat", "200")
	eats.Resources.Limits = v1.ResourceList{v1.ResourceMemory: resource.MustParse("32Mi")}
	calm := sh("calm", idle)
	t.run(once("oom", eats, calm))
	p := t.wait("oom", "OOMKilled", func(p *v1.Pod) bool {
		end := status(p, "eats").State.Terminated
		return end != nil && end.Reason == "OOMKilled"
	})
	end := status(p, "eats").State.Terminated
	t.expect(end.ExitCode == 137, "exit code %d", end.ExitCode)
	t.expect(running(p, "calm"), "its neighbour: %+v", status(p, "calm").State)
}

func terminationMessage(t *T) {
	file := sh("file", "echo from the file > /dev/termination-log; exit 1")
	other := sh("other", "echo elsewhere > /tmp/end; exit 0")
	other.TerminationMessagePath = "/tmp/end"
	logs := sh("logs", "for i in $(seq 100); do echo line $i; done; exit 1")
	logs.TerminationMessagePolicy = v1.TerminationMessageFallbackToLogsOnError
	t.run(once("messages", file, other, logs))
	p := t.wait("messages", "ended", ended)
	for name, wanted := range map[string]string{"file": "from the file\n", "other": "elsewhere\n"} {
		end := status(p, name).State.Terminated
		t.expect(end != nil && end.Message == wanted, "%s: %+v", name, end)
	}
	end := status(p, "logs").State.Terminated
	t.expect(end != nil && strings.HasSuffix(end.Message, "line 100\n") && strings.Count(end.Message, "\n") == 80, "logs: %+v", end)
}

// withWork gives all containers of a pod a common directory /work.
func withWork(p *v1.Pod) *v1.Pod {
	return withVolume(p, "work", "/work", v1.VolumeSource{EmptyDir: &v1.EmptyDirVolumeSource{}})
}

// withVolume mounts one into all containers of a pod.
func withVolume(p *v1.Pod, name, path string, source v1.VolumeSource) *v1.Pod {
	p.Spec.Volumes = append(p.Spec.Volumes, v1.Volume{Name: name, VolumeSource: source})
	for _, containers := range [][]v1.Container{p.Spec.InitContainers, p.Spec.Containers} {
		for i := range containers {
			containers[i].VolumeMounts = append(containers[i].VolumeMounts, v1.VolumeMount{Name: name, MountPath: path})
		}
	}
	return p
}

// hostVolume is a directory of the node that the scenario can read after the pod is gone.
func (t *T) hostVolume(p *v1.Pod, name string) string {
	dir := t.Path(p.Name + "." + name)
	kind := v1.HostPathDirectoryOrCreate
	withVolume(p, name, "/"+name, v1.VolumeSource{HostPath: &v1.HostPathVolumeSource{Path: dir, Type: &kind}})
	return dir
}

func preStop(t *T) {
	main := sh("main", `trap 'echo term >> /out/order; sleep 0.3; echo gone >> /out/order; exit 0' TERM; while :; do sleep 0.1; done`)
	main.Lifecycle = &v1.Lifecycle{PreStop: &v1.LifecycleHandler{Exec: &v1.ExecAction{Command: []string{"sh", "-c", "sleep 0.5; echo prestop >> /out/order"}}}}
	p := pod("prestop", main)
	p.Spec.TerminationGracePeriodSeconds = ptr(int64(20))
	out := t.hostVolume(p, "out")
	t.run(p)
	t.ready("prestop")
	begin := time.Now()
	t.delete("prestop")
	order := t.read(out + "/order")
	t.expect(order == "prestop\nterm\ngone\n", "order: %q", order)
	t.expect(time.Since(begin) < 15*time.Second, "took %v: the grace period was sat out", time.Since(begin))
}

func stubborn(t *T) {
	hangs := sh("hangs", idle)
	hangs.Lifecycle = &v1.Lifecycle{PreStop: &v1.LifecycleHandler{Exec: &v1.ExecAction{Command: []string{"sleep", "1000"}}}}
	ignores := sh("ignores", "trap '' TERM INT; while :; do sleep 1; done")
	p := pod("stubborn", hangs, ignores)
	p.Spec.TerminationGracePeriodSeconds = ptr(int64(4))
	t.run(p)
	t.ready("stubborn")
	begin := time.Now()
	t.delete("stubborn")
	took := time.Since(begin)
	t.expect(took > 3*time.Second && took < 40*time.Second, "deleted after %v, with 4 s of grace", took)
}

func stopSignals(t *T) {
	main := sh("main", `for s in TERM QUIT USR1; do trap "echo $s > /out/signal; exit 0" $s; done; while :; do sleep 0.1; done`)
	main.Lifecycle = &v1.Lifecycle{StopSignal: ptr(v1.SIGUSR1)}
	p := pod("stopsignal", main)
	p.Spec.OS = &v1.PodOS{Name: v1.Linux}
	p.Spec.TerminationGracePeriodSeconds = ptr(int64(10))
	out := t.hostVolume(p, "out")
	t.run(p)
	s := status(t.ready("stopsignal"), "main")
	t.expect(s.StopSignal != nil && *s.StopSignal == v1.SIGUSR1, "stop signal in status: %v", s.StopSignal)
	t.delete("stopsignal")
	got := t.read(out + "/signal")
	t.expect(got == "USR1\n", "got %q", got)
}

func postStart(t *T) {
	main := sh("main", idle)
	main.Lifecycle = &v1.Lifecycle{PostStart: &v1.LifecycleHandler{Exec: &v1.ExecAction{Command: []string{"sh", "-c", "echo hooked > /tmp/hook"}}}}
	bad := sh("bad", idle)
	bad.Lifecycle = &v1.Lifecycle{PostStart: &v1.LifecycleHandler{Exec: &v1.ExecAction{Command: []string{"sh", "-c", "echo no; exit 9"}}}}
	t.run(pod("poststart", main), pod("poststart-fails", bad))
	t.ready("poststart")
	t.expect(t.execSync("poststart", "main", "cat", "/tmp/hook") == "hooked\n", "the hook did not run")
	t.wait("poststart-fails", "restarted for its hook", func(p *v1.Pod) bool { return status(p, "bad").RestartCount > 0 })
}

func manyContainers(t *T) {
	var containers []v1.Container
	for i := range 20 {
		containers = append(containers, sh(fmt.Sprintf("c%d", i), fmt.Sprintf("echo %d; %s", i, idle)))
	}
	t.run(pod("twenty", containers...))
	t.ready("twenty")
	for i := range 20 {
		logs := t.logs("twenty", fmt.Sprintf("c%d", i))
		t.expect(logs == fmt.Sprintf("%d\n", i), "c%d: %q", i, logs)
	}
}

func environment(t *T) {
	main := sh("main", `echo "$NAME $IP $PLAIN $CPU"; hostname; cat /etc/podinfo/labels; grep -c . /etc/hosts`)
	field := func(path string) *v1.EnvVarSource {
		return &v1.EnvVarSource{FieldRef: &v1.ObjectFieldSelector{FieldPath: path}}
	}
	main.Env = []v1.EnvVar{
		{Name: "NAME", ValueFrom: field("metadata.name")}, {Name: "IP", ValueFrom: field("status.podIP")},
		{Name: "PLAIN", Value: "with $(NAME)"},
		{Name: "CPU", ValueFrom: &v1.EnvVarSource{ResourceFieldRef: &v1.ResourceFieldSelector{Resource: "limits.cpu"}}},
	}
	main.Resources.Limits = v1.ResourceList{v1.ResourceCPU: resource.MustParse("2")}
	main.Resources.Requests = v1.ResourceList{v1.ResourceCPU: resource.MustParse("100m")} // a node may have one processor
	p := once("environment", main)
	p.Labels = map[string]string{"colour": "blue"}
	p.Spec.HostAliases = []v1.HostAlias{{IP: "192.0.2.77", Hostnames: []string{"alias.test"}}}
	labels := v1.DownwardAPIVolumeFile{Path: "labels", FieldRef: &v1.ObjectFieldSelector{FieldPath: "metadata.labels"}}
	t.run(withVolume(p, "info", "/etc/podinfo", v1.VolumeSource{DownwardAPI: &v1.DownwardAPIVolumeSource{Items: []v1.DownwardAPIVolumeFile{labels}}}))
	logs := t.output("environment", "main")
	ip := t.pod("environment").Status.PodIP
	t.expect(strings.HasPrefix(logs, "environment-node "), "its name: %q", logs)
	t.expect(strings.Contains(logs, " with environment-node 2\n") && strings.Contains(logs, "\nenvironment-node\n") && strings.Contains(logs, `colour="blue"`), "%q (%s)", logs, ip)
}
