package mailbox_test

import (
	"bytes"
	"context"
	"io"
	"strings"
	"testing"
	"time"

	"posthorn/pkg/contract"
	"posthorn/pkg/fault"
	"posthorn/pkg/mailbox"
	"posthorn/pkg/mailbox/mailboxtest"
)

var popAnswers = []mailboxtest.Answer{
	{Verb: "CAPA", Say: "+OK\r\nUSER\r\nUIDL\r\nTOP\r\n.\r\n"},
	{Verb: "USER", Say: "+OK\r\n"}, {Verb: "PASS", Say: "+OK\r\n"},
	{Verb: "STAT", Say: "+OK 3 60\r\n"}, {Verb: "LIST", Say: "+OK\r\n1 20\r\n2 20\r\n3 20\r\n.\r\n"},
	{Verb: "UIDL", Say: "+OK\r\n1 a\r\n2 b\r\n3 c\r\n.\r\n"},
}

func TestAPOP3ListingThatIsNotWholeIsAnError(t *testing.T) {
	for name, answer := range map[string]mailboxtest.Answer{
		"blank UIDL":           {Verb: "UIDL", Say: "+OK\r\n1 a\r\n2 \r\n3 c\r\n.\r\n"},
		"short UIDL list":      {Verb: "UIDL", Say: "+OK\r\n1 a\r\n2 b\r\n.\r\n"},
		"long UIDL list":       {Verb: "UIDL", Say: "+OK\r\n1 a\r\n2 b\r\n3 c\r\n4 d\r\n.\r\n"},
		"a number twice":       {Verb: "UIDL", Say: "+OK\r\n1 a\r\n2 b\r\n2 c\r\n.\r\n"},
		"an empty line":        {Verb: "UIDL", Say: "+OK\r\n1 a\r\n\r\n2 b\r\n3 c\r\n.\r\n"},
		"short list":           {Verb: "LIST", Say: "+OK\r\n1 20\r\n.\r\n"},
		"no size":              {Verb: "LIST", Say: "+OK\r\n1 20\r\n2\r\n3 20\r\n.\r\n"},
		"a negative size":      {Verb: "LIST", Say: "+OK\r\n1 20\r\n2 -1\r\n3 20\r\n.\r\n"},
		"STAT without numbers": {Verb: "STAT", Say: "+OK\r\n"},
		"an empty status line": {Verb: "STAT", Say: "\r\n"},
		"no status line":       {Verb: "STAT", Say: "what?\r\n"},
	} {
		t.Run(name, func(t *testing.T) {
			_, s := startScript(t, mailboxtest.Script{Greeting: "+OK\r\n", Answers: append([]mailboxtest.Answer{answer},
				popAnswers...)})
			wantFault(t, opening(t, s), fault.ProtocolBroken)
		})
	}
}

func TestAPOP3BodyIsReadByteForByte(t *testing.T) {
	for name, body := range map[string]string{
		"a dot between line feeds": "Subject: x\r\n\r\npart1\n.\npart2\r\n",
		"dots at line starts":      "Subject: x\r\n\r\n.\r\n..\r\n.x\r\n",
		"a dot first":              ".Subject: x\r\n\r\nx\r\n",
		"carriage returns":         "Subject: x\r\n\r\na\r\rb\r.\r\r\n.\r\n",
		"NUL and high bytes":       "Subject: x\r\n\r\n\x00\xff\xfe\r\n",
		"long lines": "Subject: x\r\n\r\n" + strings.Repeat("x", 200<<10) + "\r\n." +
			strings.Repeat("y", 65535) + "\r\n",
		"dot at a buffer's end": "Subject: x\r\n\r\n" + strings.Repeat("x", 64<<10-21) + "\r\n.\r\nrest\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			server := startPOP3(t, mailboxtest.POP3Options{Security: mailbox.Plain})
			server.Deliver("user", []byte(body))
			server.Deliver("user", raw(2))
			_, bodies := read(t, open(t, server.Settings("user"), mailbox.Read))
			if len(bodies) != 2 || string(bodies[0]) != body || !bytes.Equal(bodies[1], raw(2)) {
				t.Errorf("%d bodies, %q", len(bodies), bodies[0][:min(200, len(bodies[0]))])
			}
		})
	}
}

func TestAPOP3BodyThatIsNotWholeIsNoMail(t *testing.T) {
	for name, c := range map[string]struct {
		fault mailboxtest.Fault
		want  fault.Code
	}{
		"cut":   {mailboxtest.Fault{CutBody: 30}, fault.ProtocolClosed},
		"empty": {mailboxtest.Fault{Reply: "+OK\r\n.\r\n"}, fault.ProtocolEmpty},
		"hung":  {mailboxtest.Fault{Hang: true}, fault.ProtocolTimeout},
		"more than one": {mailboxtest.Fault{Reply: "+OK\r\n" + string(raw(1)) + ".\r\n+OK smuggled\r\n"},
			fault.ProtocolBroken},
	} {
		t.Run(name, func(t *testing.T) {
			server := startPOP3(t, mailboxtest.POP3Options{Fault: func(verb, _ string) *mailboxtest.Fault {
				if verb == "RETR" {
					return &c.fault
				}
				return nil
			}})
			server.Deliver("user", raw(1))
			s := server.Settings("user")
			s.Timeout = short
			session := open(t, s, mailbox.Read)
			entries, err := session.List(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			_, err = fetchAll(t.Context(), session, entries...)
			wantFault(t, err, c.want)
		})
	}
}

func TestAPOP3MailIsDeletedOnlyWhenQUITWasAnswered(t *testing.T) {
	for name, quit := range map[string]mailboxtest.Fault{
		"hung": {Hang: true}, "cut": {Cut: true}, "refused": {Reply: "-ERR some deleted messages not removed\r\n"},
	} {
		t.Run(name, func(t *testing.T) {
			server := startPOP3(t, mailboxtest.POP3Options{Lock: true, Fault: func(verb, _ string) *mailboxtest.Fault {
				if verb == "QUIT" {
					return &quit
				}
				return nil
			}})
			server.Deliver("user", raw(1))
			s := server.Settings("user")
			s.Timeout = short
			first := open(t, s, mailbox.Read)
			targets, _ := read(t, first)
			gone := targets[0]
			gone.Place.UIDL = "another"
			results, err := first.Dispose(t.Context(), contract.Delete, "", append(targets, gone))
			if err == nil || outcomes(results) != "gone" {
				t.Errorf("results %q, %v", outcomes(results), err)
			}
		})
	}
}

func TestClosingAPOP3SessionDeletesNothing(t *testing.T) {
	dele := 0
	server := startPOP3(t, mailboxtest.POP3Options{Fault: func(verb, _ string) *mailboxtest.Fault {
		if verb == "DELE" {
			if dele++; dele == 2 {
				return &mailboxtest.Fault{Hang: true}
			}
		}
		return nil
	}})
	server.Deliver("user", raw(1))
	server.Deliver("user", raw(2))
	s := server.Settings("user")
	s.Timeout = short
	session := open(t, s, mailbox.Read)
	targets, _ := read(t, session)
	results, err := session.Dispose(t.Context(), contract.Delete, "", targets)
	if len(results) != 0 {
		t.Errorf("results %v", results)
	}
	wantFault(t, err, fault.ProtocolTimeout)
	if err := session.Close(); err != nil {
		t.Fatal(err)
	}
	if n := len(server.Mails("user")); n != 2 {
		t.Errorf("%d mails left", n)
	}
}

func TestAPOP3UIDLUsedAgainIsNoticed(t *testing.T) {
	for _, without := range [][]string{nil, {"TOP"}} {
		server := startPOP3(t, mailboxtest.POP3Options{Without: without})
		server.DeliverAs("user", "one", raw(1))
		server.DeliverAs("user", "two", raw(2))
		session := open(t, server.Settings("user"), mailbox.Read)
		targets, _ := read(t, session)
		if err := session.Close(); err != nil {
			t.Fatal(err)
		}
		server.Remove("user", "one")
		server.DeliverAs("user", "one", raw(3)) // of the same size
		if got := outcomes(dispose(t, server.Settings("user"), contract.Delete, targets)); got != "mismatch deleted" {
			t.Errorf("outcomes %q", got)
		}
	}
}

func TestAUIDLThatTwoMailsShareIdentifiesNeither(t *testing.T) {
	server := startPOP3(t, mailboxtest.POP3Options{})
	server.DeliverAs("user", "same", raw(1))
	server.DeliverAs("user", "same", raw(2))
	server.DeliverAs("user", "other", raw(3))
	session := open(t, server.Settings("user"), mailbox.Read)
	entries, err := session.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if entries[0].UIDL != "" || entries[1].UIDL != "" || entries[2].UIDL != "other" {
		t.Errorf("entries %v", entries)
	}
	targets, _ := read(t, session)
	if err := session.Close(); err != nil {
		t.Fatal(err)
	}
	if got := outcomes(dispose(t, server.Settings("user"), contract.Delete, targets[1:2])); got != "deleted" {
		t.Errorf("outcomes %q", got)
	}
	if left := server.Mails("user"); len(left) != 2 || !bytes.Equal(left[0].Raw, raw(1)) {
		t.Errorf("left %v", left)
	}
}

func TestALockedMaildropIsInUse(t *testing.T) {
	server := startPOP3(t, mailboxtest.POP3Options{Lock: true})
	first := open(t, server.Settings("user"), mailbox.Read)
	wantFault(t, opening(t, server.Settings("user")), fault.LimitInUse)
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	if err := opening(t, server.Settings("user")); err != nil {
		t.Errorf("after the first was closed: %v", err)
	}
}

func TestAHungPOP3ServerIsNoticedInEveryCommand(t *testing.T) {
	delete1 := func(ctx context.Context, s mailbox.Session) error {
		_, err := s.Dispose(ctx, contract.Delete, "", []mailbox.Target{{Place: contract.Place{Protocol: "pop3",
			UIDL: "a", Size: int64(len(raw(1))), Fingerprint: mailbox.Fingerprint(raw(1))}}})
		return err
	}
	first := func(call func(mailbox.Session, []mailbox.Entry) error) func(context.Context, mailbox.Session) error {
		return func(ctx context.Context, s mailbox.Session) error {
			entries, err := s.List(ctx)
			if err != nil {
				return err
			}
			return call(s, entries)
		}
	}
	for verb, call := range map[string]func(context.Context, mailbox.Session) error{
		"TOP": first(func(s mailbox.Session, e []mailbox.Entry) error {
			return s.Headers(t.Context(), e, func(mailbox.Entry, []byte) error { return nil })
		}),
		"RETR": first(func(s mailbox.Session, e []mailbox.Entry) error {
			return s.Fetch(t.Context(), e, func(_ mailbox.Entry, _ int64, body io.Reader) error {
				_, err := io.Copy(io.Discard, body)
				return err
			})
		}),
		"DELE": delete1,
		"QUIT": delete1,
	} {
		t.Run(verb, func(t *testing.T) {
			server := startPOP3(t, mailboxtest.POP3Options{Fault: func(v, _ string) *mailboxtest.Fault {
				if v == verb {
					return &mailboxtest.Fault{Hang: true}
				}
				return nil
			}})
			server.DeliverAs("user", "a", raw(1))
			s := server.Settings("user")
			s.Timeout = short
			session := open(t, s, mailbox.Read)
			began := time.Now()
			wantFault(t, call(t.Context(), session), fault.ProtocolTimeout)
			if took := time.Since(began); took > 10*short {
				t.Errorf("it took %v", took)
			}
		})
	}
}
