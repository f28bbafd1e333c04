package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"posthorn/pkg/bus"
	"posthorn/pkg/contract"
	"posthorn/pkg/fault"
	"posthorn/pkg/source"
)

type deadLettersCmd struct {
	List deadLettersListCmd `cmd:"" help:"List the mails that a stage gave up on."`
	Show deadLettersShowCmd `cmd:"" help:"Show why a stage gave up on one mail."`
}

// Help says more.
func (deadLettersCmd) Help() string {
	return `A dead letter is kept whole; its mail stays in the Inbox and is never deleted. ` +
		`posthorn receipt MAIL shows the way that the mail took.`
}

type deadLettersListCmd struct {
	Source string `placeholder:"S" help:"Only those of this source (id or name)."`
	JSON   bool   `help:"Print JSON."`
}

// Run lists dead letters.
func (c *deadLettersListCmd) Run(p *program) error {
	return p.withStore(func(conn *bus.Conn, store *source.Store) error {
		id := "*"
		if c.Source != "" {
			s, err := p.find(store, c.Source)
			if err != nil {
				return err
			}
			id = s.ID
		}
		letters := []contract.DeadLetter{}
		options := bus.ScanOptions{Filters: []string{contract.DeadLetterSubject("*", id, "*")}}
		err := conn.Scan(p.ctx, contract.StreamDeadLetters, options, func(stored bus.Stored) error {
			var letter contract.DeadLetter
			if err := json.Unmarshal(stored.Body, &letter); err != nil {
				return fmt.Errorf("the dead letter %s cannot be read: %w", stored.Subject, err)
			}
			letter.Message.Body = nil // the mail itself: show has it
			letters = append(letters, letter)
			return nil
		})
		if err != nil {
			return err
		}
		if c.JSON {
			return p.printJSON(map[string]any{"dead_letters": letters})
		}
		return p.printLetters(letters)
	})
}

func (p *program) printLetters(letters []contract.DeadLetter) error {
	if len(letters) == 0 {
		return p.printf("There are no dead letters.\n")
	}
	t := table{head: []string{"TIME", "STAGE", "SOURCE", "MAIL", "CODE", "WHY"}}
	for _, letter := range letters {
		t.add([]string{
			p.clock(letter.At), letter.Stage, letter.Source, letter.Mail, letter.Code, plain(letter.Reason, 80),
		})
	}
	return t.print(p.out)
}

type deadLettersShowCmd struct {
	Mail string `arg:"" help:"Key of the mail."`
	JSON bool   `help:"Print JSON, with the message that was kept."`
}

// Run shows a dead letter.
func (c *deadLettersShowCmd) Run(p *program) error {
	if !contract.ValidToken(c.Mail) {
		return usageError{"show takes the key of a mail, as `posthorn dead-letters list` prints it"}
	}
	return p.withStore(func(conn *bus.Conn, _ *source.Store) error {
		stored, err := conn.Last(p.ctx, contract.StreamDeadLetters, contract.DeadLetterSubject("*", "*", c.Mail))
		if errors.Is(err, bus.ErrNotFound) {
			return fmt.Errorf("there is no dead letter of the mail %s; `posthorn dead-letters list` lists them", c.Mail)
		}
		if err != nil {
			return err
		}
		if c.JSON {
			return p.printBody(stored.Body)
		}
		var letter contract.DeadLetter
		if err := json.Unmarshal(stored.Body, &letter); err != nil {
			return fmt.Errorf("the dead letter cannot be read: %w", err)
		}
		return p.printLetter(letter)
	})
}

func (p *program) printLetter(letter contract.DeadLetter) error {
	says, text := letterContent(letter), fault.New(fault.Code(letter.Code), nil, nil).Text("en")
	lines := []string{
		person(says.From) + "  " + subject(says.Subject),
		"  given up by the " + letter.Stage + ", " + attempts(letter.Attempts) + ", " + p.clock(letter.At),
		"  " + text.Headline + " (" + letter.Code + ")",
	}
	if letter.Reason != "" {
		lines = append(lines, "  reason: "+plain(letter.Reason, 300))
	}
	for _, hint := range [][2]string{{"now", text.Now}, {"you", text.You}} {
		if hint[1] != "" {
			lines = append(lines, "  "+hint[0]+": "+hint[1])
		}
	}
	lines = append(lines,
		"  source "+letter.Source+", mail "+letter.Mail,
		fmt.Sprintf("  kept: %s %d, %s, %s", letter.Message.Stream, letter.Message.Sequence, letter.Message.Subject,
			bytesText(int64(len(letter.Message.Body)))))
	return p.printf("%s\n", strings.Join(lines, "\n"))
}
