package e2e

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

const (
	// soon is for what takes a moment, long for what has to handle much mail on a slow machine.
	soon = 60 * time.Second
	long = 180 * time.Second
)

// program is Posthorn as a process of its own, that can be stopped, killed and started again.
type program struct {
	t         *testing.T
	binary    string
	data      string
	arguments []string
	command   *exec.Cmd
	ended     chan struct{}
	code      int
	ready     addresses
	lines     chan string // the first of standard output
	log       *tail
}

type addresses struct {
	Ready bool   `json:"ready"`
	HTTP  string `json:"http"`
	NATS  string `json:"nats"`
}

// settings of a program.
type settings struct {
	binary string // default: with the race detector
	// sources is the text of a sources file, "" for none.
	sources string
	ports   []int
	// arguments after those that every program gets.
	arguments []string
	data      string // default: a directory of the test
	command   string // default: run
}

// start starts Posthorn and waits until it is ready. The test ends with every process of it gone.
func start(t *testing.T, s settings) *program {
	t.Helper()
	p := prepare(t, s)
	p.start()
	return p
}

// prepare is start without starting.
func prepare(t *testing.T, s settings) *program {
	t.Helper()
	if s.binary == "" {
		s.binary = raced
	}
	if s.data == "" {
		s.data = filepath.Join(t.TempDir(), "data")
	}
	if s.command == "" {
		s.command = "run"
	}
	ports := []string{"110", "143", "993", "995"}
	for _, port := range s.ports {
		ports = append(ports, strconv.Itoa(port))
	}
	p := &program{t: t, binary: s.binary, data: s.data, log: &tail{}}
	p.arguments = []string{
		s.command, "--ready-json", "--data", s.data, "--http", "127.0.0.1:0", "--nats-listen", "127.0.0.1:0",
		"--allowed-ports", strings.Join(ports, ","),
	}
	if s.sources != "" {
		p.arguments = append(p.arguments, "--sources", sourcesFile(t, s.sources))
	}
	p.arguments = append(p.arguments, s.arguments...)
	t.Cleanup(func() {
		p.kill()
		if t.Failed() {
			t.Logf("log of posthorn %s:\n%s", strings.Join(p.arguments, " "), p.log)
		}
		if strings.Contains(p.log.String(), "DATA RACE") {
			t.Errorf("the race detector found something:\n%s", p.log)
		}
	})
	return p
}

// sourcesFile writes a sources file into a directory of the test.
func sourcesFile(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "sources.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// start starts the process, again if it has ended.
func (p *program) start() {
	p.t.Helper()
	p.launch()
	p.awaitReady()
}

// launch starts the process without waiting for it to be ready.
func (p *program) launch() {
	p.t.Helper()
	p.command = exec.CommandContext(context.Background(), p.binary, p.arguments...)
	p.command.Stderr = p.log
	out, err := p.command.StdoutPipe()
	if err != nil {
		p.t.Fatal(err)
	}
	if err := p.command.Start(); err != nil {
		p.t.Fatal(err)
	}
	p.ended = make(chan struct{})
	lines := make(chan string, 1)
	go func(command *exec.Cmd, ended chan struct{}) {
		defer close(ended)
		scanner := bufio.NewScanner(out)
		if scanner.Scan() {
			lines <- scanner.Text()
		}
		_, _ = io.Copy(io.Discard, out) // what it says later is not looked at
		err := command.Wait()
		p.code = 0
		if exit, ok := errors.AsType[*exec.ExitError](err); ok {
			p.code = exit.ExitCode()
		}
	}(p.command, p.ended)
	p.ready = addresses{}
	p.lines = lines
}

// awaitReady reads the line that says where the program can be reached.
func (p *program) awaitReady() {
	p.t.Helper()
	select {
	case line := <-p.lines:
		if err := json.Unmarshal([]byte(line), &p.ready); err != nil || !p.ready.Ready {
			p.t.Fatalf("the ready line is %q: %v", line, err)
		}
	case <-p.ended:
		p.t.Fatalf("posthorn ended with %d before it was ready", p.code)
	case <-time.After(long):
		p.t.Fatal("posthorn is not ready")
	}
}

// kill ends the process as a power cut would.
func (p *program) kill() {
	if p.command == nil {
		return
	}
	_ = p.command.Process.Kill() // it may have ended already
	<-p.ended
}

// stop asks the process to end, as a service manager does, and returns its exit code.
func (p *program) stop() int {
	p.t.Helper()
	if err := p.command.Process.Signal(syscall.SIGTERM); err != nil {
		p.t.Fatal(err)
	}
	select {
	case <-p.ended:
	case <-time.After(soon):
		p.t.Fatal("posthorn does not stop")
	}
	return p.code
}

// do runs another command of Posthorn against this one and returns what it printed on standard output, and its exit
// code.
func (p *program) do(arguments ...string) (string, int) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), soon)
	defer cancel()
	command := exec.CommandContext(ctx, p.binary, append(arguments, "--data", p.data)...)
	var errs bytes.Buffer
	command.Stderr = &errs
	out, err := command.Output()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		p.t.Logf("posthorn %s ended with %d: %s", strings.Join(arguments, " "), exit.ExitCode(), errs.String())
		return string(out), exit.ExitCode()
	}
	if err != nil {
		p.t.Fatalf("posthorn %s: %v", strings.Join(arguments, " "), err)
	}
	return string(out), 0
}

// must is do for commands that have to succeed.
func (p *program) must(arguments ...string) string {
	p.t.Helper()
	out, code := p.do(arguments...)
	if code != 0 {
		p.t.Fatalf("posthorn %s ended with %d", strings.Join(arguments, " "), code)
	}
	return out
}

// apply brings a changed sources file into the running program.
func (p *program) apply(text string) {
	p.t.Helper()
	p.must("sources", "apply", "-f", sourcesFile(p.t, text))
}

// health is what `posthorn status --json` says.
type health struct {
	Sources []sourceHealth `json:"sources"`
	Stages  []struct {
		Name      string `json:"name"`
		Instances int    `json:"instances"`
		Lag       int    `json:"lag"`
	} `json:"stages"`
	Store struct {
		SyncAlways bool `json:"sync_always"`
	} `json:"store"`
}

type sourceHealth struct {
	ID    string `json:"id"`
	Name  string `json:"name"`
	State string `json:"state"`
	Error *struct {
		Code string `json:"code"`
		Text string `json:"text"`
	} `json:"error"`
	LastCycle   time.Time `json:"last_cycle"`
	NextTry     time.Time `json:"next_try"`
	TakenIn     int       `json:"taken_in"`
	Left        int       `json:"left"`
	Dead        int       `json:"dead"`
	Waiting     int       `json:"waiting"`
	Unaccounted int       `json:"unaccounted"`
}

func (h sourceHealth) String() string {
	text := fmt.Sprintf("%s is %s (taken in %d, left %d, dead %d, waiting %d, unaccounted %d)", h.ID, h.State, h.TakenIn,
		h.Left, h.Dead, h.Waiting, h.Unaccounted)
	if h.Error != nil {
		text += ": " + h.Error.Code + ": " + h.Error.Text
	}
	return text
}

// status asks for the state of everything.
func (p *program) status() health {
	p.t.Helper()
	var h health
	out, _ := p.do("status", "--json")
	if err := json.Unmarshal([]byte(out), &h); err != nil {
		p.t.Fatalf("status says %q: %v", out, err)
	}
	return h
}

// source is the state of one source.
func (p *program) source(id string) sourceHealth {
	p.t.Helper()
	for _, s := range p.status().Sources {
		if s.ID == id {
			return s
		}
	}
	return sourceHealth{ID: id, State: "not there"}
}

// cycled waits until every source has completed a look at its mailbox that began after now.
func (p *program) cycled(ids ...string) {
	p.t.Helper()
	began := time.Now()
	eventually(p.t, soon, func() (bool, string) {
		for _, s := range p.status().Sources {
			if slices.Contains(ids, s.ID) && !s.LastCycle.After(began) {
				return false, s.String()
			}
		}
		return true, ""
	})
}

// eventually asks again and again until it is so, and fails the test with what was the case last.
func eventually(t *testing.T, within time.Duration, is func() (ok bool, now string)) {
	t.Helper()
	deadline := time.NewTimer(within)
	defer deadline.Stop()
	ticker := time.NewTicker(100 * time.Millisecond)
	defer ticker.Stop()
	for {
		ok, now := is()
		if ok {
			return
		}
		select {
		case <-ticker.C:
		case <-deadline.C:
			t.Fatalf("after %s: %s", within, now)
		}
	}
}

// tail keeps the end of what a process says.
type tail struct {
	mu   sync.Mutex
	text []byte
}

const tailMost = 1 << 20

// Write implements [io.Writer].
func (l *tail) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.text = append(l.text, p...)
	if over := len(l.text) - tailMost; over > 0 {
		l.text = append([]byte(nil), l.text[over:]...)
	}
	return len(p), nil
}

// String is what was kept, the last lines of it.
func (l *tail) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	lines := bytes.Split(l.text, []byte("\n"))
	if at := bytes.Index(l.text, []byte("DATA RACE")); at >= 0 {
		return string(l.text[at:min(len(l.text), at+8000)])
	}
	return string(bytes.Join(lines[max(0, len(lines)-60):], []byte("\n")))
}
