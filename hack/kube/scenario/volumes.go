package scenario

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"slipway/hack/kube/node"
)

var volumes = []Scenario{
	{Name: "emptyDir on disk and in memory", Run: emptyDirs},
	{Name: "emptyDir survives a restart of its container", Run: emptyDirSurvives},
	{Name: "hostPath: directory, file, socket, read-only", Run: hostPaths},
	{Name: "mount propagation: HostToContainer and Bidirectional", Run: propagation},
	{Name: "subPath", Run: subPath},
	{Name: "host network and host ports", Lacks: lacksNAT, Run: hostNetwork},
	{Name: "pods reach each other and themselves", Run: podNetwork},
}

func lacksNAT() string {
	if node.Translates() {
		return ""
	}
	return "a kernel with NAT for IPv4 (nftables)"
}

func emptyDirs(t *T) {
	size := resource.MustParse("8Mi")
	c := sh("main", "df -k /mem | tail -1; stat -fc %T /mem; stat -c %a /mem /work; dd if=/dev/zero of=/mem/big bs=1M count=20 2>&1 | grep -c 'No space'; touch /work/x && echo ok")
	p := withWork(once("emptydir", c))
	withVolume(p, "mem", "/mem", v1.VolumeSource{EmptyDir: &v1.EmptyDirVolumeSource{Medium: v1.StorageMediumMemory, SizeLimit: &size}})
	t.run(p)
	logs := t.output("emptydir", "main")
	t.expect(strings.Contains(logs, " 8192 ") && strings.HasSuffix(logs, "tmpfs\n1777\n777\n1\nok\n"), "%s", logs)
}

func emptyDirSurvives(t *T) {
	t.run(withWork(pod("emptydir-again", sh("main", "echo x >> /work/starts; cat /work/starts; test $(wc -l < /work/starts) -ge 3 || exit 1; "+idle))))
	t.wait("emptydir-again", "running for the third time", func(p *v1.Pod) bool {
		return status(p, "main").RestartCount == 2 && running(p, "main")
	})
	t.expect(t.logs("emptydir-again", "main") == "x\nx\nx\n", "%q", t.logs("emptydir-again", "main"))
}

func hostPaths(t *T) {
	dir := t.Path("hostpath")
	t.Must(os.MkdirAll(dir+"/sub", 0o755))
	t.Must(os.WriteFile(dir+"/file", []byte("of the host\n"), 0o644))
	listener, err := net.Listen("unix", dir+"/socket")
	t.Must(err)
	defer listener.Close()
	c := sh("main", "cat /one; test -S /sock && echo socket; touch /dir/sub/new && echo written; touch /ro/no 2>&1")
	p := once("hostpath", c)
	for name, path := range map[string]string{"one": dir + "/file", "sock": dir + "/socket", "dir": dir, "ro": dir} {
		withVolume(p, name, "/"+name, v1.VolumeSource{HostPath: &v1.HostPathVolumeSource{Path: path}})
	}
	for i := range p.Spec.Containers[0].VolumeMounts {
		m := &p.Spec.Containers[0].VolumeMounts[i]
		m.ReadOnly = m.Name == "ro"
	}
	p.Spec.Containers[0].Command[2] += "; true"
	t.run(p)
	logs := t.output("hostpath", "main")
	t.expect(logs == "of the host\nsocket\nwritten\ntouch: /ro/no: Read-only file system\n", "%q", logs)
	_, err = os.Stat(dir + "/sub/new")
	t.Must(err)
}

func propagation(t *T) {
	dir := t.Path("shared")
	t.Must(os.MkdirAll(dir+"/host", 0o755))
	t.Must(os.MkdirAll(dir+"/pod", 0o755))
	watcher := sh("watcher", idle)
	mounter := sh("mounter", "mount -t tmpfs inside /data/pod && echo mounted; "+idle)
	mounter.SecurityContext = &v1.SecurityContext{Privileged: ptr(true)}
	p := pod("propagation", watcher, mounter)
	withVolume(p, "data", "/data", v1.VolumeSource{HostPath: &v1.HostPathVolumeSource{Path: dir}})
	p.Spec.Containers[0].VolumeMounts[0].MountPropagation = ptr(v1.MountPropagationHostToContainer)
	p.Spec.Containers[1].VolumeMounts[0].MountPropagation = ptr(v1.MountPropagationBidirectional)
	t.run(p)
	t.ready("propagation")
	defer func() {
		_ = syscall.Unmount(dir+"/host", syscall.MNT_DETACH)
		_ = syscall.Unmount(dir+"/pod", syscall.MNT_DETACH)
	}()
	t.Must(syscall.Mount("outside", dir+"/host", "tmpfs", 0, ""))
	t.until(20*time.Second, func() bool { return strings.Contains(t.logs("propagation", "mounter"), "mounted") }, "the pod could not mount")
	seen := t.execSync("propagation", "watcher", "cat", "/proc/mounts")
	t.expect(strings.Contains(seen, "/data/host tmpfs") && strings.Contains(seen, "/data/pod tmpfs"), "the watcher sees:\n%s", seen)
	here := t.read("/proc/mounts")
	t.expect(strings.Contains(here, "inside "+dir+"/pod tmpfs"), "the host does not see the pod's mount")
}

func subPath(t *T) {
	c := sh("main", "ls /data; echo more >> /file; cat /file; mkdir -p /data/new; ls /whole/sub")
	p := withWork(once("subpath", c))
	init := sh("init", "mkdir /work/sub; echo in > /work/sub/content; echo first > /work/one")
	init.VolumeMounts = p.Spec.Containers[0].VolumeMounts
	p.Spec.InitContainers = []v1.Container{init}
	p.Spec.Containers[0].VolumeMounts = []v1.VolumeMount{
		{Name: "work", MountPath: "/data", SubPath: "sub"}, {Name: "work", MountPath: "/file", SubPath: "one"}, {Name: "work", MountPath: "/whole"}}
	t.run(p)
	logs := t.output("subpath", "main")
	t.expect(logs == "content\nfirst\nmore\ncontent\nnew\n", "%q", logs)
}

// fetch asks over HTTP from the node.
func fetch(url string) (string, error) {
	client := http.Client{Timeout: 3 * time.Second}
	answer, err := client.Get(url)
	if err != nil {
		return "", err
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	return string(text), err
}

func (t *T) fetches(url, wanted string) {
	var text string
	var err error
	t.until(15*time.Second, func() bool {
		text, err = fetch(url)
		return err == nil && text == wanted
	}, "%s: %q, not %q (%v)", url, text, wanted, err)
}

func hostNetwork(t *T) {
	mapped := witness("main", "serve")
	mapped.Ports = []v1.ContainerPort{{ContainerPort: 8080, HostPort: 30080}}
	host := sh("main", "ip -o link | grep -c ' node0@'; "+idle)
	q := pod("hostnet", host)
	q.Spec.HostNetwork = true
	t.run(pod("hostport", mapped), q)
	t.ready("hostport")
	ip := t.ready("hostport").Status.PodIP
	t.fetches("http://"+ip+":8080/", "hello from hostport-node\n")
	t.fetches("http://127.0.0.1:30080/", "hello from hostport-node\n")
	t.fetches("http://192.0.2.1:30080/", "hello from hostport-node\n")
	t.ready("hostnet")
	t.expect(t.logs("hostnet", "main") == "1\n", "the node's links are not seen: %q", t.logs("hostnet", "main"))
	t.delete("hostport")
	_, err := fetch("http://127.0.0.1:30080/")
	t.expect(err != nil, "the host port answers after its pod is gone")
}

func podNetwork(t *T) {
	t.run(pod("server", witness("main", "serve")), pod("client", witness("main", "serve")))
	ip := t.ready("server").Status.PodIP
	t.ready("client")
	got := t.execSync("client", "main", "/witness", "get", fmt.Sprintf("http://%s:8080/", ip))
	t.expect(got == "hello from server-node\n", "%q", got)
	self := t.execSync("client", "main", "sh", "-c", "ip -4 -o addr show eth0; ip route | grep -c default")
	t.expect(strings.Contains(self, t.pod("client").Status.PodIP) && strings.HasSuffix(self, "\n1\n"), "%q", self)
}
