package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"posthorn/pkg/bus"
	"posthorn/pkg/contract"
	"posthorn/pkg/mailbox"
	"posthorn/pkg/reply"
	"posthorn/services/allinone"
	"posthorn/services/demo"
)

const (
	// demoMails lie in the mailboxes when the demo starts; a few more come right after it, then one at a time.
	demoMails = 10
	demoMore  = 4
	demoPace  = 400 * time.Millisecond
)

type demoCmd struct {
	runFlags `embed:""`
	Every    time.Duration `default:"5s" placeholder:"5s" group:"what" help:"How often a mail arrives."`
}

// Help says more.
func (demoCmd) Help() string {
	return `Everything that run does, with built-in mail servers on 127.0.0.1 into which realistic mail keeps arriving. ` +
		`Any mail client can open their accounts; mail that is put into them is taken in as well. Ports are free ones ` +
		`unless given. The data lies in a temporary directory, which is removed at the end, unless --data names ` +
		`an empty one. Ctrl-C ends it.`
}

// Run runs everything until it is told to stop.
func (c *demoCmd) Run(p *program) (err error) {
	if c.Sources != "" || p.globals.NATS != "" && p.globals.NATS != allinone.Embedded {
		return usageError{"the demo has sources and a NATS server of its own: leave out --sources and --nats"}
	}
	if c.Every < time.Millisecond {
		return usageError{"--every: write a duration such as 5s"}
	}
	dir, clean, err := demoData(p.globals.Data)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, clean()) }()
	office, err := demo.Open()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, office.Close()) }()
	cfg, err := c.demoSettings(p, dir, office)
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancel(p.ctx)
	d := &demonstration{program: p, office: office, data: dir, every: c.Every, stop: stop, out: p.out}
	signal.Ignore(syscall.SIGPIPE) // an output that was closed shall not leave the directory behind
	if c.ReadyJSON {
		d.out = p.err // standard output belongs to the program that asked for JSON
	}
	office.Deliver(demoMails)

	var beside sync.WaitGroup
	defer beside.Wait()
	defer stop()
	cfg.ReadyJSON = &firstLine{also: cfg.ReadyJSON, tell: func(line []byte) {
		beside.Go(func() { d.show(ctx, line) })
	}}
	log := p.log
	if p.globals.LogLevel == "" {
		log = newLogger(p.err, *p.globals, "") // what goes well is shown by the requests themselves
	}
	return allinone.Run(ctx, cfg, log)
}

// demoData is the data directory: a new one that clean removes, or the one that was asked for, which has to be empty,
// as the mailboxes of the demo begin anew each time.
func demoData(asked string) (dir string, clean func() error, err error) {
	usual, err := filepath.Abs(defaultData())
	if err != nil {
		return "", nil, err
	}
	if asked == "" || asked == defaultData() || asked == usual {
		dir, err = os.MkdirTemp("", "posthorn-demo-")
		return dir, func() error { return os.RemoveAll(dir) }, err
	}
	entries, err := os.ReadDir(asked)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", nil, err
	}
	if len(entries) > 0 {
		return "", nil, fmt.Errorf("the directory %s is not empty: the demo begins with an empty one each time", asked)
	}
	return asked, func() error { return nil }, os.MkdirAll(asked, 0o700)
}

// demoSettings are those of run, with free ports instead of the usual ones and the sources of the demo.
func (c *demoCmd) demoSettings(p *program, dir string, office *demo.Office) (allinone.Config, error) {
	cfg, usual := c.settings(p), allinone.DefaultConfig()
	cfg.Data, cfg.KeyFile = dir, p.globals.KeyFile
	cfg.SourcesFile = filepath.Join(dir, "sources.yaml")
	cfg.Banner = nil // the demo has its own
	if cfg.HTTP == usual.HTTP {
		cfg.HTTP = "127.0.0.1:0"
	}
	if cfg.NATSListen == usual.NATSListen || cfg.NATSListen == "off" || cfg.NATSListen == "" {
		cfg.NATSListen = "127.0.0.1:0" // the demo itself subscribes there, as anybody would
	}
	for _, account := range office.Accounts() {
		cfg.AllowedPorts = append(slices.Clone(cfg.AllowedPorts), account.Port)
	}
	return cfg, os.WriteFile(cfg.SourcesFile, office.SourcesFile(), 0o600)
}

// firstLine passes on what is written and tells the first line of it.
type firstLine struct {
	also io.Writer // may be nil
	tell func(line []byte)
	once sync.Once
}

// Write implements [io.Writer].
func (w *firstLine) Write(line []byte) (int, error) {
	w.once.Do(func() { w.tell(slices.Clone(line)) })
	if w.also == nil {
		return len(line), nil
	}
	return w.also.Write(line)
}

// demonstration shows what the running program does.
type demonstration struct {
	program *program
	office  *demo.Office
	data    string
	every   time.Duration

	stop context.CancelFunc // ends the demo

	mu  sync.Mutex
	out io.Writer
}

// show explains everything, then lets mail arrive and shows what comes of it until ctx ends.
func (d *demonstration) show(ctx context.Context, ready []byte) {
	var where allinone.Addresses
	if err := json.Unmarshal(ready, &where); err != nil {
		d.program.log.Error("the demo cannot find itself", "error", err)
		return
	}
	d.explain(where)
	conn, err := bus.Connect(ctx, bus.Options{URL: where.NATS, Name: "posthorn demo", Logger: d.program.log})
	if err != nil {
		if ctx.Err() == nil {
			d.program.log.Error("the demo cannot show the requests", "error", err)
		}
		return
	}
	defer conn.Close()
	var beside sync.WaitGroup
	defer beside.Wait()
	follow := func(stream contract.Stream, filter string, each func(bus.Stored) error) {
		options := bus.FollowOptions{Filters: []string{filter}, All: true}
		if err := conn.Follow(ctx, stream, options, each); err != nil && ctx.Err() == nil {
			d.program.log.Error("the demo no longer shows everything", "stream", stream, "error", err)
		}
	}
	beside.Go(func() { follow(contract.StreamContactRequests, "contact-request.v1.>", d.request) })
	beside.Go(func() { follow(contract.StreamParsed, contract.SkippedSubject("*"), d.left) })
	d.arrive(ctx)
}

// arrive lets mail arrive until ctx ends: a few quickly, then one at a time.
func (d *demonstration) arrive(ctx context.Context) {
	quick := time.NewTicker(demoPace)
	defer quick.Stop()
	for range demoMore {
		select {
		case <-quick.C:
			d.office.Deliver(1)
		case <-ctx.Done():
			return
		}
	}
	d.office.Run(ctx, d.every)
}

func (d *demonstration) printf(format string, args ...any) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, err := fmt.Fprintf(d.out, format, args...); err != nil {
		d.stop() // nobody looks any more
	}
}

func (d *demonstration) explain(where allinone.Addresses) {
	var accounts strings.Builder
	for _, a := range d.office.Accounts() {
		var note string
		switch {
		case a.RepliesOnly:
			note = "  takes in replies only, the rest stays in the Inbox"
		case a.Protocol == mailbox.POP3:
			note = "  mail stays on the server, each is taken in once"
		default:
			note = "  mail that was taken in moves to the mailbox Archive"
		}
		fmt.Fprintf(&accounts, "  %-4s %s port %-5d  user %-26s password %s\n%s\n",
			a.Protocol, a.Host, a.Port, a.User, a.Password, "     "+note)
	}
	d.printf(`Posthorn demo: mail arrives every %[1]s, and becomes contact requests.

Mailboxes (no encryption, this machine only; open them with any mail client):
%[2]s
NATS       %[3]s
Data       %[4]s

Try in another terminal:
  posthorn watch --data %[4]s
  posthorn status --data %[4]s
  posthorn receipt aino --data %[4]s
  posthorn sources test sales --data %[4]s
  nats sub --server '%[3]s' 'contact-request.v1.*.sales.>'

Contact requests as they appear (Ctrl-C ends the demo):

`, d.every, accounts.String(), where.NATS, d.data)
}

// request shows one event of a contact request.
func (d *demonstration) request(stored bus.Stored) error {
	var r contract.ContactRequest
	if err := json.Unmarshal(stored.Body, &r); err != nil {
		return nil //nolint:nilerr // an event of a kind that the demo does not make
	}
	from := "somebody"
	if r.From != nil {
		if from = r.From.Name; from == "" {
			from = r.From.Address
		}
	}
	text := r.TextReply
	if text == "" {
		text = r.Text
	}
	notes := ""
	if r.Machine != "" {
		notes += " [" + r.Machine + "]"
	}
	if n := len(r.Attachments); n == 1 {
		notes += " [1 file]"
	} else if n > 1 {
		notes += fmt.Sprintf(" [%d files]", n)
	}
	if r.Event == contract.EventReplied {
		notes += " [joins an earlier request]"
	}
	d.printf("%s  %-8s  %-7s  %s: %s%s\n%31s%s\n", d.program.clock(stored.Time), r.Event, r.Source.ID,
		plain(from, 30), plain(r.Subject, 70), notes, "", plain(text, 90))
	return nil
}

// left shows one mail that stays in its Inbox.
func (d *demonstration) left(stored bus.Stored) error {
	var s contract.SkippedMail
	if err := json.Unmarshal(stored.Body, &s); err != nil {
		return nil //nolint:nilerr // as above
	}
	why := map[string]string{
		reply.NotReply: "it is no reply", reply.MachineMail: "a program wrote it", reply.Unsure: "perhaps a reply",
	}[s.Reply.Verdict]
	d.printf("%s  %-8s  %-7s  %s (stays in the Inbox: %s)\n", d.program.clock(stored.Time), "left", s.Source.ID,
		plain(s.Subject, 70), why)
	return nil
}
