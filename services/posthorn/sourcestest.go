package main

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"posthorn/pkg/bus"
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
		if result != "ok" {
			return exitCode(exitFailed)
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
	if facts := factsText(step.Facts); facts != "" {
		line += "  " + facts
	}
	lines := []string{line}
	if step.Fault != nil {
		text := step.Fault.Text("en")
		lines = append(lines, "    "+text.Headline+" ("+string(step.Fault.Code)+")", "    you: "+text.You)
	}
	return p.printf("%s\n", strings.Join(lines, "\n"))
}

// factsText writes facts in a fixed order.
func factsText(facts map[string]string) string {
	parts := make([]string, 0, len(facts))
	for _, name := range slices.Sorted(maps.Keys(facts)) {
		if value := plain(facts[name], 120); value != "" {
			parts = append(parts, strings.ReplaceAll(name, "_", " ")+": "+value)
		}
	}
	return strings.Join(parts, ", ")
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
