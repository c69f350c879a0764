package scenario

import (
	"bufio"
	"fmt"
	"net/url"
	"path/filepath"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"

	"slipway/hack/kube/node"
)

var logs = []Scenario{
	{Name: "logs: whole, tail, since, limit, timestamps, one stream", Run: logOptions},
	{Name: "logs of the previous container", Run: previousLogs},
	{Name: "following a log, to its end", Run: followLogs},
	{Name: "rotation under way loses no line", Run: rotation},
	{Name: "partial and binary lines", Run: oddLines},
}

func logOptions(t *T) {
	t.run(once("logs", sh("main", "for i in 1 2 3; do echo out $i; echo err $i >&2; done; sleep 4; echo late")))
	t.output("logs", "main")
	get := func(options url.Values) string {
		text, err := t.API.Logs(t.Ctx, "logs", "main", options)
		t.Must(err)
		return text
	}
	whole := get(nil)
	t.expect(strings.Count(whole, "\n") == 7 && strings.HasSuffix(whole, "late\n"), "%q", whole)
	t.expect(get(url.Values{"tailLines": {"1"}}) == "late\n", "tail: %q", get(url.Values{"tailLines": {"1"}}))
	end := status(t.pod("logs"), "main").State.Terminated.FinishedAt.Add(-2 * time.Second)
	since := get(url.Values{"sinceTime": {end.UTC().Format(time.RFC3339)}})
	t.expect(since == "late\n", "since: %q", since)
	t.expect(get(url.Values{"limitBytes": {"4"}}) == whole[:4], "limit")
	stamped := get(url.Values{"timestamps": {"true"}, "tailLines": {"1"}})
	_, err := time.Parse(time.RFC3339Nano, strings.Fields(stamped)[0])
	t.Must(err)
}

func previousLogs(t *T) {
	t.run(withWork(pod("previous", sh("main", "echo x >> /work/n; echo start $(wc -l < /work/n); test $(wc -l < /work/n) -gt 1 || exit 1; "+idle))))
	t.wait("previous", "running again", func(p *v1.Pod) bool { return status(p, "main").RestartCount == 1 && running(p, "main") })
	text, err := t.API.Logs(t.Ctx, "previous", "main", url.Values{"previous": {"true"}})
	t.Must(err)
	t.expect(text == "start 1\n", "previous: %q", text)
	t.expect(t.logs("previous", "main") == "start 2\n", "now: %q", t.logs("previous", "main"))
}

func followLogs(t *T) {
	t.run(once("follow", sh("main", "for i in $(seq 30); do echo line $i; sleep 0.1; done")))
	t.wait("follow", "running", func(p *v1.Pod) bool { return running(p, "main") || ended(p) })
	body, err := t.API.Open(t.Ctx, node.LogPath("follow", "main", url.Values{"follow": {"true"}}))
	t.Must(err)
	defer body.Close()
	t.Must(inOrder(bufio.NewScanner(body), 30))
}

// inOrder reads `line 1`, `line 2` and so on until the end, or the last one wanted.
func inOrder(lines *bufio.Scanner, last int) error {
	next := 1
	for lines.Scan() {
		if wanted := fmt.Sprintf("line %d", next); lines.Text() != wanted {
			return fmt.Errorf("%q where %q was expected", lines.Text(), wanted)
		}
		if next++; next > last {
			return nil
		}
	}
	return fmt.Errorf("the log ends before line %d: %w", next, lines.Err())
}

// rotation: kubelet renames at 64 KiB and asks for a new file every 3 s, while a follower reads: no line is missing in
// the files. Kubelet's follower goes to the new file as soon as it sees it and never again to the one renamed, with what
// was written between its last look and the reopening: there a line may be missing, but none comes twice or late.
func rotation(t *T) {
	t.run(pod("rotated", witness("main", "count", "1")))
	t.ready("rotated")
	body, err := t.API.Open(t.Ctx, node.LogPath("rotated", "main", url.Values{"follow": {"true"}}))
	t.Must(err)
	defer body.Close()
	last, missed := 0, 0
	for lines := bufio.NewScanner(body); last < 12000; {
		t.expect(lines.Scan(), "the log ends behind line %d: %v", last, lines.Err())
		var number int
		_, err := fmt.Sscanf(lines.Text(), "line %d", &number)
		t.expect(err == nil && number > last, "%q behind line %d", lines.Text(), last)
		missed, last = missed+number-last-1, number
	}
	t.expect(missed < 1200, "the follower missed %d lines of %d", missed, last)
	t.wholeLog("rotated")
}

// logDir is where the logs of a pod's container `main` are.
func (t *T) logDir(name string) string {
	p := t.pod(name)
	t.expect(p != nil, "%s is not known to kubelet any more", name)
	return filepath.Join(t.Path("pod-logs"), fmt.Sprintf("default_%s_%s", node.PodName(name), p.UID), "main")
}

func oddLines(t *T) {
	t.run(once("odd", sh("main", `head -c 50000 /dev/zero | tr '\0' a; echo; printf '\n\n'; printf 'tab\tand \302\265 \377\n'; printf 'no end'`)))
	got := t.output("odd", "main")
	t.expect(got == strings.Repeat("a", 50000)+"\n\n\ntab\tand \u00b5 \xff\nno end", "%d bytes: …%q", len(got), got[max(0, len(got)-60):])
}
