package node

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// Use is what a node's own programs use: of one processor, and in memory.
type Use struct {
	RuntimeCPU, KubeletCPU float64
	// Memory is the runtime's proportional set size in bytes: daemon, keeper or shims, and what it puts into pods.
	Memory    int64
	Processes int
}

// ticks per second of the times in /proc/PID/stat: USER_HZ, 100 on every architecture that Linux still has.
const ticks = 100

// Use over so long.
func (n *Node) Use(length time.Duration) Use {
	helpers, kubelet := n.helpers(), n.Kubelet.Pid()
	before, beforeKubelet := cpu(helpers...), cpu(kubelet)
	time.Sleep(length)
	use := Use{
		RuntimeCPU: float64(cpu(helpers...)-before) / ticks / length.Seconds(),
		KubeletCPU: float64(cpu(kubelet)-beforeKubelet) / ticks / length.Seconds(),
		Processes:  len(helpers),
	}
	for _, pid := range helpers {
		use.Memory += proportional(pid)
	}
	return use
}

// helpers are the runtime's processes, with the pause processes in its pods.
func (n *Node) helpers() []int {
	var pids []int
	for pid := range processesOf(n.Dir) {
		if pid != n.Kubelet.Pid() && !strings.Contains(commandOf(pid), "kubelet") {
			pids = append(pids, pid)
		}
	}
	for _, group := range n.containerGroups(hierarchies()[0]) {
		text, _ := os.ReadFile(group + "/cgroup.procs")
		for _, line := range strings.Fields(string(text)) {
			if pid, _ := strconv.Atoi(line); commandOf(pid) == "pause" {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}

func commandOf(pid int) string {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	return strings.TrimSpace(string(text))
}

// cpu is utime and stime together (proc_pid_stat(5)), in ticks.
func cpu(pids ...int) (sum int) {
	for _, pid := range pids {
		text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		_, after, _ := strings.Cut(string(text), ") ")
		if fields := strings.Fields(after); len(fields) > 12 {
			user, _ := strconv.Atoi(fields[11])
			system, _ := strconv.Atoi(fields[12])
			sum += user + system
		}
	}
	return sum
}

func proportional(pid int) int64 {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	for _, line := range strings.Split(string(text), "\n") {
		var kilobytes int64
		if n, _ := fmt.Sscanf(line, "Pss: %d kB", &kilobytes); n == 1 {
			return kilobytes << 10
		}
	}
	return 0
}
