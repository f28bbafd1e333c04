package e2e

import (
	"bufio"
	"context"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestTheDemoShowsRequestsAtOnceAndLeavesNothingBehind(t *testing.T) {
	t.Parallel()
	temporary := t.TempDir()
	command := exec.CommandContext(context.Background(), raced, "demo", "--every", "500ms")
	command.Env = append(os.Environ(), "TMPDIR="+temporary)
	var errs tail
	command.Stderr = &errs
	out, err := command.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = command.Process.Kill() })
	lines := make(chan string)
	go func() {
		defer close(lines)
		scanner := bufio.NewScanner(out)
		for scanner.Scan() {
			lines <- scanner.Text()
		}
	}()
	seen := map[string]int{}
	var all []string
	deadline := time.After(soon)
	for seen["received"] < 10 || seen["replied"] < 2 || seen["left"] < 4 {
		select {
		case line, ok := <-lines:
			if !ok {
				t.Fatalf("the demo ended: %s", &errs)
			}
			all = append(all, line)
			for _, event := range []string{"received", "replied", "left"} {
				if strings.Contains(line, "  "+event+" ") {
					if event == "received" && seen[event] == 0 {
						t.Logf("the first request showed after %s", time.Since(began).Round(10*time.Millisecond))
						if time.Since(began) > 15*time.Second {
							t.Errorf("the first request showed after %s", time.Since(began))
						}
					}
					seen[event]++
				}
			}
		case <-deadline:
			t.Fatalf("the demo has shown only %v:\n%s\n%s", seen, strings.Join(all, "\n"), &errs)
		}
	}
	if err := command.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	for range lines { // until it has ended
	}
	if err := command.Wait(); err != nil {
		t.Errorf("the demo ended with %v: %s", err, &errs)
	}
	left, err := os.ReadDir(temporary)
	if err != nil || len(left) > 0 {
		t.Errorf("the demo left %v behind: %v", left, err)
	}
	if strings.Contains(errs.String(), "DATA RACE") {
		t.Errorf("the race detector found something:\n%s", &errs)
	}
}

func TestTheOtherCommandsFindTheDemo(t *testing.T) {
	t.Parallel()
	posthorn := start(t, settings{command: "demo"})
	posthorn.broker().awaitEvents("sales", 4, soon)
	eventually(t, soon, func() (bool, string) {
		for _, s := range posthorn.status().Sources {
			if s.State != "ok" {
				return false, s.String()
			}
		}
		return true, ""
	})
	posthorn.must("sources", "test", "sales")
	if out := posthorn.must("receipt", "Korhonen"); !strings.Contains(out, "received") {
		t.Errorf("receipt says %q", out)
	}
	if code := posthorn.stop(); code != 0 {
		t.Errorf("the demo ended with %d", code)
	}
}
