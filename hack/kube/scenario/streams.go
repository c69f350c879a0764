package scenario

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/util/exec"
)

var streams = []Scenario{
	{Name: "exec over SPDY and WebSocket", Run: execs},
	{Name: "exec with a terminal", Run: execTerminal},
	{Name: "attach", Run: attach},
	{Name: "port-forward", Run: portForward},
}

func execs(t *T) {
	t.run(pod("exec", sh("main", idle)))
	t.ready("exec")
	for _, websocket := range []bool{false, true} {
		stdin := strings.NewReader(strings.Repeat("0123456789abcdef", 1<<16)) // 1 MiB
		var stdout, stderr bytes.Buffer
		options := remotecommand.StreamOptions{Stdin: stdin, Stdout: &stdout, Stderr: &stderr}
		err := t.API.Stream(t.Ctx, "exec", "exec", "main", websocket, options, "sh", "-c", "wc -c; echo bad >&2; exit 7")
		code, failed := err.(exec.CodeExitError)
		t.expect(failed && code.Code == 7, "websocket %v: %v, not exit code 7", websocket, err)
		t.expect(strings.TrimSpace(stdout.String()) == "1048576" && stderr.String() == "bad\n", "websocket %v: %q %q", websocket, &stdout, &stderr)
		err = t.API.Stream(t.Ctx, "exec", "exec", "main", websocket, remotecommand.StreamOptions{Stdout: &stdout, Stderr: &stderr}, "/no/such/program")
		t.expect(err != nil && strings.Contains(err.Error(), "no such"), "websocket %v: a missing program: %v", websocket, err)
	}
}

// sizes gives one terminal size and then none.
type sizes chan remotecommand.TerminalSize

func (s sizes) Next() *remotecommand.TerminalSize {
	if size, more := <-s; more {
		return &size
	}
	return nil
}

func execTerminal(t *T) {
	t.run(pod("terminal", sh("main", idle)))
	t.ready("terminal")
	for _, websocket := range []bool{false, true} {
		queue := make(sizes, 1)
		queue <- remotecommand.TerminalSize{Width: 91, Height: 33}
		in, typing := io.Pipe()
		var stdout bytes.Buffer
		done := make(chan error, 1)
		go func() {
			done <- t.API.Stream(t.Ctx, "exec", "terminal", "main", websocket,
				remotecommand.StreamOptions{Stdin: in, Stdout: &stdout, Tty: true, TerminalSizeQueue: queue}, "sh")
		}()
		go func() {
			time.Sleep(time.Second)
			_, _ = io.WriteString(typing, "stty size; exit 3\n")
		}()
		err := <-done
		in.Close() // whoever still types is let go
		close(queue)
		code, failed := err.(exec.CodeExitError)
		t.expect(failed && code.Code == 3, "websocket %v: %v, not exit code 3; %q", websocket, err, &stdout)
		t.expect(strings.Contains(stdout.String(), "33 91"), "websocket %v: the size is not seen: %q", websocket, &stdout)
	}
}

func attach(t *T) {
	c := sh("main", "while read line; do echo got $line; done; echo end; sleep 1")
	c.Stdin, c.StdinOnce = true, true
	t.run(once("attach", c))
	t.wait("attach", "running", func(p *v1.Pod) bool { return running(p, "main") })
	var stdout, stderr bytes.Buffer
	options := remotecommand.StreamOptions{Stdin: strings.NewReader("one\ntwo\n"), Stdout: &stdout, Stderr: &stderr}
	t.Must(t.API.Stream(t.Ctx, "attach", "attach", "main", true, options))
	t.expect(stdout.String() == "got one\ngot two\nend\n", "%q", &stdout)
	t.expect(t.output("attach", "main") == "got one\ngot two\nend\n", "the log differs")
}

func portForward(t *T) {
	server := witness("main", "serve")
	// kubectl's client gives up for good when a connection is refused: the server must listen.
	server.ReadinessProbe = every(1, httpGet("/healthz", 8080))
	t.run(pod("forward", server))
	t.ready("forward")
	ctx, stop := context.WithCancel(t.Ctx)
	defer stop()
	port, err := t.API.PortForward(ctx, "forward", 8080)
	t.Must(err)
	for range 20 {
		t.fetches(fmt.Sprintf("http://127.0.0.1:%d/", port), "hello from forward-node\n")
	}
}
