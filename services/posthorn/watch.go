package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"posthorn/pkg/bus"
	"posthorn/pkg/contract"
	"posthorn/pkg/source"
)

type watchCmd struct {
	Workflow string `placeholder:"W" help:"Only requests that came in for this workflow."`
	Source   string `placeholder:"S" help:"Only those of this source (id or name)."`
	Since    string `placeholder:"T" help:"${help_watch_since}"`
	JSON     bool   `help:"Print one JSON object per line: the event as it is stored."`
}

// Help says more.
func (watchCmd) Help() string {
	return `Shows requests, replies and what becomes of them, from now on, until Ctrl-C.

Examples:

  posthorn watch --workflow sales
  posthorn watch --since all --json | jq -r .subject

A program of your own subscribes with pkg/client or any NATS client instead: it is told what it missed meanwhile.`
}

// Run follows contact requests until it is told to stop.
func (c *watchCmd) Run(p *program) error {
	options := bus.FollowOptions{}
	if err := c.since(&options, p.now()); err != nil {
		return err
	}
	return p.withStore(func(conn *bus.Conn, store *source.Store) error {
		filter, err := c.filter(p, store)
		if err != nil {
			return err
		}
		options.Filters = []string{filter}
		options.Started = func() {
			_, _ = fmt.Fprintf(p.err, "Watching %s; stop with Ctrl-C.\n", filter) // a courtesy
		}
		return conn.Follow(p.ctx, contract.StreamContactRequests, options, func(stored bus.Stored) error {
			if c.JSON {
				return p.printBody(stored.Body)
			}
			return p.printEvent(stored)
		})
	})
}

// since reads --since.
func (c *watchCmd) since(options *bus.FollowOptions, now time.Time) error {
	switch c.Since {
	case "":
		return nil
	case "all":
		options.All = true
		return nil
	}
	if d, err := time.ParseDuration(c.Since); err == nil && d > 0 {
		options.Since = now.Add(-d)
		return nil
	}
	for _, layout := range []string{time.RFC3339, time.DateOnly} {
		if at, err := time.Parse(layout, c.Since); err == nil {
			options.Since = at
			return nil
		}
	}
	return usageError{"--since takes a time such as 2026-11-23T08:00:00Z, a date, how long ago such as 2h, or all; not " +
		quoted(c.Since)}
}

// filter is the subject to follow.
func (c *watchCmd) filter(p *program, store *source.Store) (string, error) {
	workflow, id := "*", "*"
	if c.Workflow != "" {
		workflow = c.Workflow
		if !contract.ValidToken(workflow) {
			return "", usageError{"--workflow takes the id of a workflow (a-z, 0-9, _ and -), not " + quoted(workflow)}
		}
	}
	if c.Source != "" {
		s, err := p.find(store, c.Source)
		switch {
		case err == nil:
			id = s.ID
		case contract.ValidToken(c.Source): // one that was removed: its requests are still there
			id = c.Source
		default:
			return "", err
		}
	}
	return contract.ContactRequestSubject("*", workflow, id, "*"), nil
}

// printBody prints a stored body on one line, at once.
func (p *program) printBody(body []byte) error {
	var line bytes.Buffer
	if err := json.Compact(&line, body); err != nil {
		return p.printLine(map[string]string{"unreadable": err.Error()})
	}
	line.WriteByte('\n')
	_, err := p.out.Write(line.Bytes())
	return err
}

// printEvent prints an event for people. What later versions add is shown by its name.
func (p *program) printEvent(stored bus.Stored) error {
	event, workflow, id, key, err := contract.ContactRequestKeys(stored.Subject)
	if err != nil {
		return nil //nolint:nilerr // no event of a contact request
	}
	head := fmt.Sprintf("%s  %-9s %s/%s", p.clock(stored.Time), event, id, workflow)
	var body contract.ContactRequest
	if json.Unmarshal(stored.Body, &body) != nil || body.From == nil && body.Subject == "" && body.Text == "" {
		return p.printf("%s  %s\n", head, key)
	}
	head += "  " + person(body.From) + "  " + subject(body.Subject)
	var details []string
	if body.Machine != "" {
		details = append(details, body.Machine)
	}
	if n := len(body.Attachments); n > 0 {
		details = append(details, count(n, "attachment", "attachments"))
	}
	if body.Parse.Status != "" && body.Parse.Status != "ok" {
		details = append(details, "parsed: "+body.Parse.Status)
	}
	if event == contract.EventReplied {
		details = append(details, "joins "+body.Request)
	}
	details = append(details, "mail "+key)
	text := body.TextReply
	if text == "" {
		text = body.Text
	}
	line := "          "
	if text = plain(text, 90); text != "" {
		line += text + "  "
	}
	return p.printf("%s\n%s[%s]\n", head, line, strings.Join(details, ", "))
}
