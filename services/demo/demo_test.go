package demo

import (
	"bytes"
	"errors"
	"io"
	"mime"
	"net/mail"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/emersion/go-imap/v2"
	"github.com/emersion/go-imap/v2/imapclient"

	"posthorn/pkg/reply"
	"posthorn/pkg/source"
)

func TestEveryMailOfTwoRoundsIsAProperMailOfItsOwn(t *testing.T) {
	play := newCorrespondence()
	for _, l := range play.sent {
		l.write(time.Now())
	}
	seen := map[string]bool{}
	for n := range 2 * len(scenes) {
		raw := play.next(n).write(time.Now())
		if seen[string(raw)] {
			t.Errorf("mail %d came before", n)
		}
		seen[string(raw)] = true
		parsed, err := mail.ReadMessage(bytes.NewReader(raw))
		if err != nil {
			t.Fatalf("mail %d: %v", n, err)
		}
		kind, params, err := mime.ParseMediaType(parsed.Header.Get("Content-Type"))
		if err != nil {
			t.Errorf("mail %d: %v", n, err)
		}
		body, err := io.ReadAll(parsed.Body)
		if err != nil || len(body) == 0 {
			t.Errorf("mail %d has no body: %v", n, err)
		}
		if strings.HasPrefix(kind, "multipart/") && !bytes.HasSuffix(body, []byte("--"+params["boundary"]+"--\r\n")) {
			t.Errorf("mail %d does not end with its boundary", n)
		}
		if bytes.Contains(bytes.ReplaceAll(raw, []byte("\r\n"), nil), []byte("\n")) {
			t.Errorf("mail %d has a bare line feed", n)
		}
		for line := range bytes.SplitSeq(raw, []byte("\r\n")) {
			if len(line) > 998 {
				t.Errorf("mail %d has a line of %d bytes", n, len(line))
			}
		}
	}
}

func TestTheRepliesToSentMailAreRecognisedAndTheRestIsNot(t *testing.T) {
	play := newCorrespondence()
	sentIDs := map[string]bool{}
	for _, l := range play.sent {
		l.write(time.Now())
		sentIDs[l.id] = true
	}
	replies := map[string]bool{"matti": true, "hanako": true, "grace": true}
	for n, s := range scenes {
		mail := play.next(n)
		if mail.account != support {
			continue
		}
		header, _ := reply.SplitHeader(mail.write(time.Now()))
		verdict := reply.Decide(reply.Input{
			Header: reply.ParseHeader(header), OwnAddresses: []string{support}, Evidence: reply.EvidenceSent,
			SentReady: true, Sent: func(id string) bool { return sentIDs[id] },
		})
		if got := verdict.Verdict == reply.Reply; got != replies[s.name] {
			t.Errorf("%s: %s %v", s.name, verdict.Verdict, verdict.Reasons)
		}
	}
}

func TestTheSourcesFileKeepsTheRules(t *testing.T) {
	office, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = office.Close() })
	path := filepath.Join(t.TempDir(), "sources.yaml")
	if err := os.WriteFile(path, office.SourcesFile(), 0o600); err != nil {
		t.Fatal(err)
	}
	file, err := source.LoadFile(path, os.LookupEnv)
	if err != nil {
		t.Fatal(err)
	}
	var workflows []source.Workflow
	for _, w := range file.Workflows {
		workflows = append(workflows, w.Workflow)
	}
	for _, s := range file.Sources {
		problems := source.Validate(s.Source, source.Rules{
			AllowedPorts: []int{s.Source.Port}, Workflows: workflows, Password: s.Password,
		})
		if len(problems) > 0 {
			t.Errorf("%s: %v", s.Source.ID, problems)
		}
	}
	if len(file.Sources) != len(office.Accounts()) {
		t.Errorf("%d sources for %d accounts", len(file.Sources), len(office.Accounts()))
	}
}

func TestMailArrivesInEveryAccount(t *testing.T) {
	office, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = office.Close() })
	office.Deliver(12)
	if n := len(office.imap.Mails(sales, inbox)); n != 4 {
		t.Errorf("%d mails for sales", n)
	}
	if n := len(office.imap.Mails(support, inbox)); n != 6 {
		t.Errorf("%d mails for support", n)
	}
	if n := len(office.pop3.Mails(info)); n != 2 {
		t.Errorf("%d mails for info", n)
	}
}

func TestAMailThatAMailClientPutsThereWithoutADateHasThePresentOne(t *testing.T) {
	office, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = office.Close() })
	client, err := imapclient.DialInsecure(office.imap.Addr(), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	if err := client.Login(sales, password).Wait(); err != nil {
		t.Fatal(err)
	}
	raw := "Subject: hello\r\n\r\nhello\r\n"
	put := client.Append(inbox, int64(len(raw)), nil)
	_, err = io.WriteString(put, raw)
	if err = errors.Join(err, put.Close()); err != nil {
		t.Fatal(err)
	}
	if _, err := put.Wait(); err != nil {
		t.Fatal(err)
	}
	if _, err := client.Select(inbox, nil).Wait(); err != nil {
		t.Fatal(err)
	}
	mails, err := client.Fetch(imap.SeqSetNum(1), &imap.FetchOptions{InternalDate: true}).Collect()
	if err != nil || len(mails) != 1 || time.Since(mails[0].InternalDate).Abs() > time.Hour {
		t.Errorf("received %v: %v", mails, err)
	}
}
