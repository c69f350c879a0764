// Package scenario holds what is shown with a real kubelet: each scenario a function, on a node that it shares with
// others or has for itself.
package scenario

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"slipway/hack/kube/node"
)

// Scenario shows one thing.
type Scenario struct {
	Name string
	// Own is the node it needs for itself; nil: one shared with the others, at the same time.
	Own *node.Options
	// Pending names what Slipway lacks for it; it is told and not run, unless asked for.
	Pending string
	// Lacks says what this machine has not that it needs; "" or no function: nothing.
	Lacks func() string
	Run   func(*T)
}

// All scenarios, in the order they are told.
func All() []Scenario {
	var all []Scenario
	for _, group := range [][]Scenario{life, probes, volumes, security, images, logs, streams, bad, kubeletAPI, restarts, pressure, managed} {
		all = append(all, group...)
	}
	return all
}

func (s Scenario) lack() string {
	if s.Lacks == nil {
		return ""
	}
	return s.Lacks()
}

// patience is how long one scenario may take before it counts as hung; slow shared machines are the measure.
const patience = 5 * time.Minute

// T is a scenario under way: its node, its pods, its failures.
type T struct {
	*node.Node
	Ctx context.Context

	pods []string
}

type failure struct{ error }

// Fatalf ends the scenario as failed.
func (t *T) Fatalf(format string, args ...any) { panic(failure{fmt.Errorf(format, args...)}) }

// Must ends the scenario when there is an error.
func (t *T) Must(err error) {
	if err != nil {
		panic(failure{err})
	}
}

func (t *T) expect(holds bool, format string, args ...any) {
	if !holds {
		t.Fatalf(format, args...)
	}
}

// outcome runs it, deletes its pods, and turns whatever went wrong into an error.
func (s Scenario) outcome(ctx context.Context, n *node.Node) (err error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	t := &T{Node: n, Ctx: ctx}
	defer func() {
		switch panicked := recover().(type) {
		case nil:
		case failure:
			err = panicked.error
		default:
			err = fmt.Errorf("%v\n%s", panicked, debug.Stack())
		}
		if err != nil {
			err = fmt.Errorf("%w\n%s", err, t.describe())
		}
		err = errors.Join(err, t.deleteAll())
	}()
	s.Run(t)
	return nil
}

// Report prints a line per scenario and counts.
type Report struct {
	out    io.Writer
	mutex  sync.Mutex
	passed int
	failed int
	skips  int
}

func (r *Report) pending(s Scenario) {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	fmt.Fprintf(r.out, "wait  %-44s for %s\n", s.Name, s.Pending)
}

func (r *Report) skipped(s Scenario, lack string) {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	r.skips++
	fmt.Fprintf(r.out, "skip  %-44s %s\n", s.Name, lack)
}

func (r *Report) line(name string, took time.Duration, err error) {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	if err == nil {
		r.passed++
		fmt.Fprintf(r.out, "ok    %-44s %6.1f s\n", name, took.Seconds())
		return
	}
	r.failed++
	fmt.Fprintf(r.out, "FAIL  %-44s %6.1f s\n      %s\n", name, took.Seconds(), strings.ReplaceAll(err.Error(), "\n", "\n      "))
}

// Run plays the scenarios whose names contain one of the words (none: all), the shared ones `jobs` at a time, and
// tells whether all passed. Pending ones are only run when `unready`.
func Run(ctx context.Context, jobs int, unready bool, words []string) bool {
	report := &Report{out: os.Stdout}
	var shared, own []Scenario
	for _, s := range All() {
		if !wanted(s.Name, words) {
			continue
		}
		if s.Pending != "" && !unready {
			report.pending(s)
		} else if lack := s.lack(); lack != "" {
			report.skipped(s, lack)
		} else if s.Own == nil {
			shared = append(shared, s)
		} else {
			own = append(own, s)
		}
	}
	if len(shared) > 0 {
		runShared(ctx, report, jobs, shared)
	}
	for _, s := range own {
		if ctx.Err() == nil {
			runOwn(ctx, report, s)
		}
	}
	if report.skips > 0 {
		fmt.Printf("%d skipped: this machine lacks what they need\n", report.skips)
	}
	fmt.Printf("%d passed, %d failed\n", report.passed, report.failed)
	return report.failed == 0 && ctx.Err() == nil
}

func wanted(name string, words []string) bool {
	for _, word := range words {
		if strings.Contains(name, word) {
			return true
		}
	}
	return len(words) == 0
}

func runOwn(ctx context.Context, report *Report, s Scenario) {
	begin := time.Now()
	n, err := node.Start(ctx, *s.Own)
	if err == nil {
		err = s.outcome(ctx, n)
		err = errors.Join(err, n.Stop(context.WithoutCancel(ctx)))
	}
	report.line(s.Name, time.Since(begin), err)
}

func runShared(ctx context.Context, report *Report, jobs int, scenarios []Scenario) {
	begin := time.Now()
	n, err := node.Start(ctx, sharedNode())
	report.line("a node comes up", time.Since(begin), err)
	if err != nil {
		return
	}
	queue := make(chan Scenario)
	var workers sync.WaitGroup
	for range jobs {
		workers.Go(func() {
			for s := range queue {
				begin := time.Now()
				err := s.outcome(ctx, n)
				report.line(s.Name, time.Since(begin), err)
			}
		})
	}
	for _, s := range scenarios {
		if ctx.Err() != nil {
			break
		}
		queue <- s
	}
	close(queue)
	workers.Wait()
	begin = time.Now()
	err = n.Stop(context.WithoutCancel(ctx))
	report.line("nothing is left behind", time.Since(begin), err)
}
