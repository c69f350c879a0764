package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"slipway/hack/kube/node"
	"slipway/hack/kube/scenario"
)

// standing says which node `up` left running: its pid, and then, once it is ready, its directory.
func standing() string { return filepath.Join(os.TempDir(), "slipway-kubelet.up") }

func test(ctx context.Context, jobs int, unready bool, words []string) error {
	if !scenario.Run(ctx, jobs, unready, words) {
		return errors.New("not all scenarios passed")
	}
	return nil
}

func soak(ctx context.Context, args []string) error {
	if len(args) != 1 {
		return errors.New("soak: for how many MINUTES?")
	}
	minutes, err := strconv.ParseFloat(args[0], 64)
	if err != nil || minutes <= 0 {
		return fmt.Errorf("soak: %q is not a number of minutes", args[0])
	}
	return scenario.Soak(ctx, time.Duration(minutes*float64(time.Minute)))
}

func bench(ctx context.Context, args []string) error {
	counts := []int{0, 50, 100}
	if len(args) > 0 {
		counts = nil
	}
	for _, arg := range args {
		count, err := strconv.Atoi(arg)
		if err != nil || count < 0 {
			return fmt.Errorf("bench: %q is not a number of pods", arg)
		}
		counts = append(counts, count)
	}
	return scenario.Bench(ctx, counts)
}

// up starts a program that holds the node, and returns when it is ready.
func up(runtime string) error {
	if pid, _ := holder(); pid != 0 {
		return fmt.Errorf("a node is up already (pid %d): hack/kubelet down", pid)
	}
	log := filepath.Join(os.TempDir(), "slipway-kubelet.log")
	out, err := os.Create(log)
	if err != nil {
		return err
	}
	defer out.Close()
	holding := exec.Command("/proc/self/exe", "hold", "--runtime", runtime)
	holding.Stdout, holding.Stderr = out, out
	holding.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := holding.Start(); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- holding.Wait() }()
	for {
		select {
		case err := <-ended:
			text, _ := os.ReadFile(log)
			return fmt.Errorf("no node: %w\n%s", err, text)
		case <-time.After(200 * time.Millisecond):
		}
		if pid, dir := holder(); pid != 0 {
			tell(pid, dir)
			return nil
		}
	}
}

func tell(pid int, dir string) {
	fmt.Printf(`a node is up in %[2]s; its namespaces are those of pid %[1]d
static pods        %[2]s/manifests
kubelet            nsenter -t %[1]d -n curl -sk https://127.0.0.1:10250/pods
the runtime        nsenter -t %[1]d -n -m hack/bin/crictl -r unix://%[2]s/runtime.sock ps
logs               %[2]s/kubelet.log %[2]s/runtime.log
images             busybox and witness, as test.local/NAME:1 with imagePullPolicy: Never
take it down       hack/kubelet down
`, pid, dir)
}

// holder is who holds the node that is up, and its directory; 0: none.
func holder() (pid int, dir string) {
	text, err := os.ReadFile(standing())
	if err != nil {
		return 0, ""
	}
	number, dir, _ := strings.Cut(strings.TrimSpace(string(text)), " ")
	pid, _ = strconv.Atoi(number)
	// The number of a process that is gone may be another's by now.
	command, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if !strings.Contains(string(command), "\x00hold\x00") {
		return 0, ""
	}
	return pid, dir
}

// hold keeps a node until it is told to end.
func hold(ctx context.Context, runtime string) error {
	n, err := node.Start(ctx, node.Options{Runtime: runtime})
	if err != nil {
		return err
	}
	if err := os.WriteFile(standing(), fmt.Appendf(nil, "%d %s\n", os.Getpid(), n.Dir), 0o644); err != nil {
		return errors.Join(err, n.Stop(context.Background()))
	}
	<-ctx.Done()
	return errors.Join(n.Stop(context.Background()), os.Remove(standing()))
}

func down() error {
	pid, dir := holder()
	if pid == 0 {
		return errors.New("no node is up")
	}
	if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
		return err
	}
	for syscall.Kill(pid, 0) == nil {
		time.Sleep(100 * time.Millisecond)
	}
	text, _ := os.ReadFile(filepath.Join(os.TempDir(), "slipway-kubelet.log"))
	if len(text) > 0 {
		return fmt.Errorf("%s left something behind:\n%s", dir, text)
	}
	fmt.Println("the node is down and left nothing behind")
	return nil
}
