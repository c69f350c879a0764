package scenario

import (
	"archive/tar"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"slipway/hack/kube/node"
)

// criu is the program: SLIPWAY_TEST_CRIU, where that of PATH is too old for the kernel.
func criu() string {
	if path := os.Getenv("SLIPWAY_TEST_CRIU"); path != "" {
		return path
	}
	return "criu"
}

func lacksCriu() string {
	if out, err := exec.Command(criu(), "check").CombinedOutput(); err != nil {
		said, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
		return fmt.Sprintf("a criu that works on this kernel (%s check: %v %s; SLIPWAY_TEST_CRIU names another)", criu(), err, said)
	}
	return ""
}

func checkpointing() *node.Options {
	return &node.Options{RuntimeConfig: fmt.Sprintf("[checkpoints]\ncriu = %q\n", criu())}
}

// checkpoint by kubelet's API: an archive of the form that others read, and a container that goes on.
func checkpoint(t *T) {
	t.run(pod("counter", sh("main", "i=0; while :; do i=$((i+1)); echo $i > /n.new; mv /n.new /n; sleep 0.05; done")))
	before := status(t.ready("counter"), "main")
	t.until(30*time.Second, func() bool { return t.count("counter") > 0 }, "it does not count")
	text, err := t.API.Post(t.Ctx, "/checkpoint/default/"+node.PodName("counter")+"/main")
	t.Must(err)
	var made struct{ Items []string }
	t.Must(json.Unmarshal([]byte(text), &made))
	t.expect(len(made.Items) == 1 && strings.HasPrefix(made.Items[0], t.Path("kubelet/checkpoints/")), "answer %q", text)
	names := t.entries(made.Items[0])
	for _, wanted := range []string{"config.dump", "spec.dump", "checkpoint/inventory.img"} {
		t.expect(names[wanted], "no %s in the archive", wanted)
	}
	at := t.count("counter")
	t.until(30*time.Second, func() bool { return t.count("counter") > at }, "it does not go on")
	after := status(t.pod("counter"), "main")
	t.expect(after.ContainerID == before.ContainerID && after.RestartCount == 0, "restarted: %+v", after)
	_, err = t.API.Post(t.Ctx, "/checkpoint/default/"+node.PodName("counter")+"/nobody")
	t.expect(err != nil, "a checkpoint of a container that is not there")
	t.Must(os.Remove(made.Items[0]))
}

func (t *T) count(name string) int {
	number, _ := strconv.Atoi(strings.TrimSpace(t.execSync(name, "main", "sh", "-c", "cat /n 2>/dev/null || echo 0")))
	return number
}

// entries of a tar archive.
func (t *T) entries(path string) map[string]bool {
	file, err := os.Open(path)
	t.Must(err)
	defer file.Close()
	names := map[string]bool{}
	for archive := tar.NewReader(file); ; {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return names
		}
		t.Must(err)
		names[strings.TrimPrefix(header.Name, "./")] = true
	}
}
