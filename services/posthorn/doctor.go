package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"posthorn/pkg/bus"
	"posthorn/pkg/fault"
	"posthorn/pkg/secret"
	"posthorn/pkg/source"
	"posthorn/pkg/stage"
	"posthorn/services/allinone"
)

type doctorCmd struct {
	JSON bool `help:"Print JSON."`
}

// Help says more.
func (doctorCmd) Help() string {
	return `Looks at the data directory, free space, the key file, the store and whether it writes at once, streams and ` +
		`consumers, the clock, versions and every source. It changes nothing. Ends with 1 when something is wrong (✕).`
}

// check is one line of the doctor.
type check struct {
	// Status is ok, warn or fail.
	Status string `json:"status"`
	Name   string `json:"name"`
	Text   string `json:"text"`
	// You is what a person can do.
	You string `json:"you,omitempty"`
}

// checks are collected.
type checks []check

func (c *checks) ok(name, format string, args ...any) {
	*c = append(*c, check{Status: "ok", Name: name, Text: fmt.Sprintf(format, args...)})
}

func (c *checks) warn(name, you, format string, args ...any) {
	*c = append(*c, check{Status: "warn", Name: name, Text: fmt.Sprintf(format, args...), You: you})
}

func (c *checks) fail(name, you, format string, args ...any) {
	*c = append(*c, check{Status: "fail", Name: name, Text: fmt.Sprintf(format, args...), You: you})
}

// fault adds what an error says.
func (c *checks) fault(name string, err error) {
	if f, ok := errors.AsType[*fault.Error](err); ok {
		text := f.Text("en")
		c.fail(name, text.You, "%s (%s). %s", text.Headline, f.Code, text.Now)
		return
	}
	c.fail(name, "", "%s", err)
}

// Run examines everything.
func (c *doctorCmd) Run(p *program) error {
	var found checks
	local := p.globals.NATS == "" || p.globals.NATS == allinone.Embedded
	if _, err := os.Stat(p.globals.Data); err == nil || local {
		p.checkData(&found)
	}
	p.checkProgram(&found)
	if c.JSON {
		if err := p.printJSON(map[string]any{"checks": found}); err != nil {
			return err
		}
	} else if err := p.printChecks(found); err != nil {
		return err
	}
	for _, one := range found {
		if one.Status == "fail" {
			return exitCode(exitFailed)
		}
	}
	return nil
}

func (p *program) printChecks(found checks) error {
	for _, one := range found {
		sign := map[string]string{"ok": "✓", "warn": "!", "fail": "✕"}[one.Status]
		if err := p.printf("%s %-16s %s\n", sign, one.Name, one.Text); err != nil {
			return err
		}
		if one.You != "" {
			if err := p.printf("  %-16s you: %s\n", "", one.You); err != nil {
				return err
			}
		}
	}
	return nil
}

// Free space below which the doctor is worried.
const (
	lowSpace  = 1 << 30
	leastFree = 200 << 20
)

// checkData looks at what lies on this machine.
func (p *program) checkData(found *checks) {
	dir, err := filepath.Abs(p.globals.Data)
	if err != nil {
		dir = p.globals.Data
	}
	info, err := os.Stat(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		found.fail("data directory", "Start it with `posthorn run`, or name another with --data.", "%s is not there", dir)
		return
	case err != nil:
		found.fail("data directory", "Run the doctor as the user that runs Posthorn.", "%s cannot be read: %v", dir, err)
		return
	case !info.IsDir():
		found.fail("data directory", "Name a directory with --data.", "%s is no directory", dir)
		return
	case info.Mode().Perm()&0o077 != 0 && runtime.GOOS != "windows":
		found.warn("data directory", "chmod 700 "+dir, "%s can be read by others (%s): mail lies in it", dir,
			info.Mode().Perm())
	default:
		found.ok("data directory", "%s", dir)
	}
	if free, total, known := freeSpace(dir); known {
		text := fmt.Sprintf("%s free of %s", bytesText(free), bytesText(total))
		switch {
		case free < leastFree:
			found.fail("free space", "Make room: without it no mail is taken in.", "%s", text)
		case free < lowSpace:
			found.warn("free space", "Make room soon: without it no mail is taken in.", "%s", text)
		default:
			found.ok("free space", "%s", text)
		}
	}
	p.checkKeys(found)
}

func (p *program) checkKeys(found *checks) {
	path := p.globals.keyFile()
	info, err := os.Stat(path)
	if err != nil {
		found.fail("key file", "Put back the copy of the key file, or name it with --key-file.",
			"%s: %v; no stored password can be read without it", path, err)
		return
	}
	keys, err := secret.Load(path)
	switch {
	case err != nil:
		found.fault("key file", err)
	case info.Mode().Perm()&0o077 != 0 && runtime.GOOS != "windows":
		found.fail("key file", "chmod 600 "+path, "%s can be read by others (%s)", path, info.Mode().Perm())
	default:
		found.ok("key file", "%s, %s; keep a copy of it in a safe place", path, count(len(keys.KeyIDs()), "key", "keys"))
	}
}

// checkProgram looks at the running program through its broker.
func (p *program) checkProgram(found *checks) {
	conn, err := p.connect()
	if stopped, ok := errors.AsType[*notRunning](err); ok {
		found.fail("running", "Start it with `posthorn run`, or name a running one with --data or --nats.", "%s",
			stopped.looked)
		return
	}
	if err != nil {
		found.fault("running", err)
		return
	}
	defer conn.Close()
	found.ok("store", "reachable at %s", conn.URL())
	if err := conn.CheckProvisioned(p.ctx); err != nil {
		found.fault("streams", err)
		return
	}
	found.ok("streams", "all streams, consumers and buckets are there")
	presents, err := stage.Presents(p.ctx, conn)
	if err != nil {
		found.fault("processes", err)
		return
	}
	p.checkProcesses(found, conn, presents)
	store, err := p.store(conn, nil, nil)
	if err != nil {
		found.fault("sources", err)
		return
	}
	p.checkSources(found, conn, store)
}

func (p *program) checkProcesses(found *checks, conn *bus.Conn, presents []stage.Present) {
	if durable(presents) {
		found.ok("sync", "every message is on disk before it is acknowledged")
	} else {
		text := fault.New(fault.StoreNotDurable, nil, nil).Text("en")
		found.fail("sync", text.You, "%s. %s", text.Headline, text.Now)
	}
	used, limit, err := conn.Usage(p.ctx)
	for _, present := range presents {
		limit = max(limit, present.MaxStore)
	}
	switch {
	case err != nil:
		found.warn("store size", "", "not known: %v", err)
	case limit > 0 && used > limit/10*9:
		found.fail("store size", "Raise the limit (--max-store) or make room.", "%s of %s", bytesText(used), bytesText(limit))
	case limit > 0:
		found.ok("store size", "%s of %s", bytesText(used), bytesText(limit))
	default:
		found.ok("store size", "%s", bytesText(used))
	}
	running := map[string]int{}
	var newest time.Time
	for _, present := range presents {
		for _, name := range present.Stages {
			running[name]++
		}
		if present.Seen.After(newest) {
			newest = present.Seen
		}
	}
	for _, name := range []string{allinone.Fetcher, allinone.Parser, allinone.Router, allinone.Archiver} {
		if running[name] == 0 {
			found.fail("stage "+name, "Start one: posthorn run --stages "+name, "no process runs it")
		} else {
			found.ok("stage "+name, "%s", count(running[name], "process", "processes"))
		}
	}
	p.checkVersions(found, presents)
	// A record is renewed every few seconds; beyond that the difference is one of clocks.
	switch drift := p.now().Sub(newest); {
	case newest.IsZero():
	case drift > 30*time.Second || drift < -10*time.Second:
		found.fail("clock", "Let both machines keep their time by NTP.", "this machine and the store differ by %s",
			drift.Round(time.Second))
	default:
		found.ok("clock", "%s", p.now().UTC().Format(time.RFC3339))
	}
}

func (p *program) checkVersions(found *checks, presents []stage.Present) {
	own, others := version().Version, map[string]bool{}
	for _, present := range presents {
		others[present.Version] = true
	}
	delete(others, own)
	if len(others) > 0 {
		found.warn("versions", "Run the same version everywhere.", "this program is %s, running are also: %v", own,
			sortedKeys(others))
		return
	}
	found.ok("versions", "%s", own)
}

func (p *program) checkSources(found *checks, conn *bus.Conn, store *source.Store) {
	sources, err := store.List(p.ctx)
	if err != nil {
		found.fault("sources", err)
		return
	}
	if len(sources) == 0 {
		found.warn("sources", "Add some: posthorn sources apply -f FILE", "there are none")
		return
	}
	shown, err := p.shown(conn, sources)
	if err != nil {
		found.fault("sources", err)
		return
	}
	for _, s := range shown {
		name := "source " + s.ID
		text := string(s.State.State) + ", last full check " + ago(s.State.LastCycle, p.now())
		you := ""
		if e := s.State.Error; e != nil {
			text, you = string(s.State.State)+": "+plain(e.Text, 300)+" ("+string(e.Code)+")", e.You
		}
		switch s.State.State {
		case source.StateFailing:
			found.fail(name, you, "%s", text)
		case source.StateDegraded, source.StateStale:
			found.warn(name, you, "%s", text)
		case source.StatePaused:
			found.warn(name, "posthorn sources resume "+s.ID, "paused")
		default:
			found.ok(name, "%s", text)
		}
		if badge := plainBadge(s.Source); badge != "" {
			found.warn(name, "Turn ssl on where the server offers it.", "%s", badge)
		}
		if n := s.State.Unaccounted; n > 0 {
			found.warn(name, "Look at it again after the next check.", "%s do not tally", count(n, "mail", "mails"))
		}
	}
}
