package main

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"posthorn/pkg/bus"
	"posthorn/pkg/contract"
	"posthorn/pkg/fault"
	"posthorn/pkg/mailbox"
	"posthorn/pkg/source"
	"posthorn/services/fetcher"
)

type sourcesTestCmd struct {
	Name string `arg:"" help:"Id or name of the source."`
	JSON bool   `help:"Print each step as one line of JSON."`
}

// Help says more.
func (sourcesTestCmd) Help() string {
	return `A running fetcher makes the test: it is where the network and the keys are. The mailbox is only looked at: ` +
		`nothing is marked, moved, created or deleted. Ends with 0 when mail can be taken in, else with 1.`
}

// Run tests a source and prints each step as it comes.
func (c *sourcesTestCmd) Run(p *program) error {
	return p.withStore(func(conn *bus.Conn, store *source.Store) error {
		s, err := p.find(store, c.Name)
		if err != nil {
			return err
		}
		body, err := json.Marshal(fetcher.TestRequest{ID: s.ID})
		if err != nil {
			return err
		}
		if !c.JSON {
			if err := p.printf("Testing %s: %s %s:%d\n", s.ID, s.Type, s.Server, s.Port); err != nil {
				return err
			}
		}
		result := ""
		err = conn.Ask(p.ctx, fetcher.TestSubject, nil, body, func(header map[string]string, body []byte) (bool, error) {
			if end := header[fetcher.HeaderTestEnd]; end != "" {
				result = end
				return true, nil
			}
			var step mailbox.Step
			if err := json.Unmarshal(body, &step); err != nil {
				return false, fmt.Errorf("the answer of the fetcher cannot be read: %w", err)
			}
			if c.JSON {
				return false, p.printLine(step)
			}
			return false, p.printStep(step)
		})
		if err != nil {
			return fmt.Errorf("source %s: %w", s.ID, err)
		}
		verdict, code := "Mail can be taken in.", exitOK
		if result != "ok" {
			verdict, code = "Mail cannot be taken in. Nothing was changed in the mailbox.", exitFailed
		}
		if !c.JSON {
			if err := p.printf("%s\n", verdict); err != nil {
				return err
			}
		}
		if code != exitOK {
			return exitCode(code)
		}
		return nil
	})
}

// printStep prints one step of a test, with what was learnt and what to do.
func (p *program) printStep(step mailbox.Step) error {
	sign := map[mailbox.StepStatus]string{
		mailbox.StepOK: "✓", mailbox.StepWarn: "!", mailbox.StepFail: "✕", mailbox.StepSkipped: "-",
	}[step.Status]
	line := fmt.Sprintf("%s %-12s %6.2f s", sign, step.Name, step.Duration.Seconds())
	if step.Status == mailbox.StepSkipped {
		line = fmt.Sprintf("%s %-12s   skipped", sign, step.Name)
	}
	if facts := learnt(step); facts != "" {
		line += "  " + facts
	}
	lines := []string{line}
	if step.Fault != nil {
		text := step.Fault.Text("en")
		lines = append(lines, "    "+text.Headline+" ("+string(step.Fault.Code)+")", "    you: "+text.You)
	}
	if port := step.Facts["hint_port"]; port != "" {
		lines = append(lines, "    hint: port "+plain(port, 10)+" answers")
	}
	return p.printf("%s\n", strings.Join(lines, "\n"))
}

// learnt says what a step has found out.
func learnt(step mailbox.Step) string {
	fact := func(name string) string { return plain(step.Facts[name], 120) }
	switch name := step.Name; {
	case len(step.Facts) == 0:
		return ""
	case name == "dns":
		return fact("addresses")
	case name == "tcp":
		return fact("address")
	case name == "tls":
		if fact("names") == "" {
			return fact("version")
		}
		return fact("version") + ", certificate for " + fact("names") + " from " + fact("issuer") + " until " +
			fact("not_after")
	case name == "capabilities":
		return fact("capabilities")
	case name == "inbox":
		return fact("messages") + " mails"
	case name == "archive":
		if missing := fact("create"); missing != "" {
			return quoted(missing) + " is made when the first mail is moved"
		}
		return fact("mailbox")
	case name == "backlog":
		return fact("messages") + " mails in the Inbox: what is new is taken in, then " + afterwards(step.Facts)
	default:
		return fact("why")
	}
}

// afterwards says what will be done to mails that were taken in.
func afterwards(facts map[string]string) string {
	switch name := facts["mailbox"]; {
	case facts["then"] == string(contract.Delete):
		return "deleted"
	case facts["then"] == string(contract.Archive) && name != "":
		return "moved to " + quoted(plain(name, 120))
	default:
		return "left where they are"
	}
}

type sourcesTraceCmd struct {
	Name string `arg:"" help:"Id or name of the source."`
	JSON bool   `help:"Print each line of the protocol as one line of JSON."`
}

// Help says more.
func (sourcesTraceCmd) Help() string {
	return `C: is what Posthorn says, S: what the server says. Passwords are cut and contents left out. ` +
		`Nothing is shown while nothing is spoken: posthorn sources retry NAME makes it look at once.`
}

// traceAgain is how often a trace is asked for again: fetchers end it by themselves after ten minutes.
const traceAgain = 4 * time.Minute

// Run shows the protocol of a source until it is told to stop.
func (c *sourcesTraceCmd) Run(p *program) error {
	return p.withStore(func(conn *bus.Conn, store *source.Store) error {
		s, err := p.find(store, c.Name)
		if err != nil {
			return err
		}
		ctx, stop := context.WithCancelCause(p.ctx)
		defer stop(nil)
		err = conn.Listen(ctx, fetcher.TraceLines(s.ID), func(_ string, body []byte) {
			var line fetcher.TraceLine
			err := json.Unmarshal(body, &line)
			switch {
			case err != nil:
				return // of another version
			case c.JSON:
				err = p.printLine(line)
			default:
				err = p.printf("%s %s: %s\n", line.At.In(p.zone).Format("15:04:05.000"), line.Direction, fault.Quote(line.Line))
			}
			if err != nil {
				stop(err)
			}
		})
		if err != nil {
			return err
		}
		body, err := json.Marshal(fetcher.TraceRequest{ID: s.ID})
		if err != nil {
			return err
		}
		for first := true; ; first = false {
			err := conn.Ask(ctx, fetcher.TraceSubject, nil, body, func(map[string]string, []byte) (bool, error) {
				return true, nil
			})
			if err != nil && first {
				return err
			}
			if first {
				_, _ = fmt.Fprintf(p.err, "Showing what is spoken for %s; stop with Ctrl-C.\n", s.ID) // a courtesy
			}
			select {
			case <-time.After(traceAgain):
			case <-ctx.Done():
				if p.ctx.Err() != nil { // told to stop
					return nil
				}
				return context.Cause(ctx)
			}
		}
	})
}
