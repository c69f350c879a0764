package scenario

import (
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

var probes = []Scenario{
	{Name: "http, tcp, grpc and exec probes: ready, unready, ready", Run: readiness},
	{Name: "liveness: a failing probe restarts", Run: liveness},
	{Name: "startup probe holds the others back", Run: startup},
	{Name: "exec probe that times out is a failure and leaves nothing", Run: hangingProbe},
	{Name: "probes of pods with the node's network", Run: hostNetworkProbe},
}

func httpGet(path string, port int) v1.ProbeHandler {
	return v1.ProbeHandler{HTTPGet: &v1.HTTPGetAction{Path: path, Port: intstr.FromInt(port)}}
}

func execProbe(command ...string) v1.ProbeHandler {
	return v1.ProbeHandler{Exec: &v1.ExecAction{Command: command}}
}

func every(seconds int32, handler v1.ProbeHandler) *v1.Probe {
	return &v1.Probe{ProbeHandler: handler, PeriodSeconds: seconds, FailureThreshold: 1, TimeoutSeconds: 5}
}

func readiness(t *T) {
	handlers := map[string]v1.ProbeHandler{
		"http": httpGet("/healthz", 8080),
		"grpc": {GRPC: &v1.GRPCAction{Port: 9090}},
		"exec": execProbe("sh", "-c", "! test -e /tmp/unhealthy"),
	}
	for kind, handler := range handlers {
		c := witness("main", "serve")
		c.ReadinessProbe = every(1, handler)
		t.run(pod("ready-"+kind, c))
	}
	tcp := sh("main", "while :; do test -e /tmp/unhealthy || nc -l -p 7070 -w 1 >/dev/null 2>&1 </dev/null || sleep 0.2; done")
	tcp.ReadinessProbe = &v1.Probe{ProbeHandler: v1.ProbeHandler{TCPSocket: &v1.TCPSocketAction{Port: intstr.FromInt(7070)}}, PeriodSeconds: 1, FailureThreshold: 3}
	t.run(pod("ready-tcp", tcp))
	kinds := []string{"http", "grpc", "exec", "tcp"}
	for _, kind := range kinds {
		t.ready("ready-" + kind)
	}
	for _, kind := range kinds {
		t.execSync("ready-"+kind, "main", "touch", "/tmp/unhealthy")
	}
	for _, kind := range kinds {
		t.wait("ready-"+kind, "unready", func(p *v1.Pod) bool { return !ready(p) })
	}
	for _, kind := range kinds {
		t.execSync("ready-"+kind, "main", "rm", "/tmp/unhealthy")
	}
	for _, kind := range kinds {
		p := t.ready("ready-" + kind)
		t.expect(status(p, "main").RestartCount == 0, "%s was restarted", kind)
	}
}

func liveness(t *T) {
	c := witness("main", "serve")
	c.LivenessProbe = every(1, httpGet("/healthz", 8080))
	t.run(pod("live", c))
	t.ready("live")
	t.execSync("live", "main", "touch", "/tmp/unhealthy")
	p := t.wait("live", "restarted and healthy", func(p *v1.Pod) bool { return status(p, "main").RestartCount == 1 && ready(p) })
	// The file system of the container was a fresh one: the mark is gone.
	last := status(p, "main").LastTerminationState.Terminated
	t.expect(last != nil && last.ExitCode != 0, "last state %+v", last)
}

func startup(t *T) {
	c := sh("main", "sleep 5; touch /tmp/started; "+idle)
	c.StartupProbe = &v1.Probe{ProbeHandler: execProbe("test", "-e", "/tmp/started"), PeriodSeconds: 1, FailureThreshold: 60}
	c.LivenessProbe = every(1, execProbe("test", "-e", "/tmp/started"))
	t.run(pod("startup", c))
	p := t.ready("startup")
	s := status(p, "main")
	t.expect(s.RestartCount == 0 && s.Started != nil && *s.Started, "status %+v", s)
	t.expect(time.Since(s.State.Running.StartedAt.Time) >= 4*time.Second, "started too early")
}

func hangingProbe(t *T) {
	c := sh("main", idle)
	c.ReadinessProbe = every(2, execProbe("sh", "-c", "test -e /tmp/hang || exit 0; sleep 8765 & sleep 8765"))
	c.ReadinessProbe.TimeoutSeconds = 1
	t.run(pod("hang", c))
	t.ready("hang")
	t.execSync("hang", "main", "touch", "/tmp/hang")
	t.wait("hang", "unready", func(p *v1.Pod) bool { return !ready(p) })
	t.sleep(3 * time.Second)
	t.execSync("hang", "main", "rm", "/tmp/hang")
	t.ready("hang")
	processes := t.execSync("hang", "main", "ps")
	t.expect(!strings.Contains(processes, "8765"), "timed-out probes left:\n%s", processes)
}

func hostNetworkProbe(t *T) {
	c := sh("main", "httpd -f -p 18080 -h /tmp & "+idle)
	c.ReadinessProbe = every(1, v1.ProbeHandler{TCPSocket: &v1.TCPSocketAction{Port: intstr.FromInt(18080), Host: "127.0.0.1"}})
	p := pod("host-probe", c)
	p.Spec.HostNetwork = true
	t.run(p)
	got := t.ready("host-probe").Status
	t.expect(got.PodIP == got.HostIP, "pod %s, host %s", got.PodIP, got.HostIP)
}
