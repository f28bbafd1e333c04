package parser

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"log/slog"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"posthorn/pkg/bus"
	"posthorn/pkg/bus/bustest"
	"posthorn/pkg/contract"
	"posthorn/pkg/stage"
)

// room is a running parser.
type room struct {
	t    *testing.T
	conn *bus.Conn
}

func startRoom(t *testing.T) *room {
	t.Helper()
	conn := bustest.Start(t)
	parser, err := New(Config{Instance: "test"}, stage.Deps{
		Conn: conn, Publisher: conn.Publisher(), Metrics: prometheus.NewRegistry(), Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	ready := make(chan struct{})
	go func() { ended <- parser.Run(ctx, func() { close(ready) }) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	<-ready
	return &room{t: t, conn: conn}
}

// store puts a raw mail into the stream as the fetcher does, and returns its key.
func (r *room) store(raw string, change func(*contract.Stamp, map[string]string)) string {
	r.t.Helper()
	digest := sha256.Sum256([]byte(raw))
	key := contract.MailKey("sales", digest)
	stamp := contract.Stamp{
		Source: contract.SourceRef{ID: "sales", Name: "Sales", Address: "sales@example.org"}, Revision: 1, Epoch: "e1",
		Workflow: "sales", Disposition: contract.Archive, Evidence: "sent",
	}
	header := map[string]string{
		contract.HeaderReceivedAt: "2026-11-23T08:00:00Z", contract.HeaderSHA256: hex.EncodeToString(digest[:]),
		contract.HeaderSize: strconv.Itoa(len(raw)),
	}
	if change != nil {
		change(&stamp, header)
	}
	for name, value := range map[string]any{
		contract.HeaderStamp: stamp, contract.HeaderPlace: contract.Place{Epoch: "e1", Protocol: "imap", UID: 1, UIDValidity: 7},
	} {
		text, err := json.Marshal(value)
		if err != nil {
			r.t.Fatal(err)
		}
		if _, given := header[name]; !given {
			header[name] = string(text)
		}
	}
	subject := contract.RawSubject("sales", key)
	out := bus.Outgoing{Subject: subject, Once: subject, ID: key, Header: header, Body: []byte(raw)}
	if _, err := r.conn.Publisher().Publish(r.t.Context(), out); err != nil {
		r.t.Fatal(err)
	}
	return key
}

func repliesOnly(stamp *contract.Stamp, _ map[string]string) { stamp.RepliesOnly = true }

func (r *room) eventually(what string, check func() bool) {
	r.t.Helper()
	deadline := time.After(time.Minute)
	for !check() {
		select {
		case <-time.After(5 * time.Millisecond):
		case <-deadline:
			r.t.Fatalf("not within a minute: %s", what)
		}
	}
}

// has waits until a subject's newest message fulfils check.
func (r *room) has(stream contract.Stream, subject string, check func(bus.Stored) bool) {
	r.t.Helper()
	r.eventually(subject, func() bool {
		last, err := r.conn.Last(r.t.Context(), stream, subject)
		if errors.Is(err, bus.ErrNotFound) {
			return false
		}
		if err != nil {
			r.t.Fatal(err)
		}
		return check == nil || check(*last)
	})
}

// content asks for stored content as a stranger does.
func (r *room) content(kind, key, body string) (data []byte, refused string) {
	r.t.Helper()
	err := r.conn.Ask(r.t.Context(), contract.ContentSubject(kind, "sales", key), nil, []byte(body),
		func(header map[string]string, chunk []byte) (bool, error) {
			data = append(data, chunk...)
			refused = header[contract.HeaderError]
			return header[contract.HeaderLast] == "true", nil
		})
	if err != nil {
		r.t.Fatal(err)
	}
	return data, refused
}

const (
	enquiry = "From: a@example.net\r\nSubject: Enquiry\r\nMessage-ID: <1@example.net>\r\n\r\nHow much?\r\n"
	answer  = "From: a@example.net\r\nSubject: Re: Offer\r\nMessage-ID: <2@example.net>\r\n" +
		"In-Reply-To: <offer@example.org>\r\n\r\nYes, please.\r\n"
)

func TestAMailIsHandedOnWithWhatItSays(t *testing.T) {
	r := startRoom(t)
	key := r.store(enquiry, nil)
	r.has(contract.StreamParsed, contract.ParsedSubject("sales"), func(stored bus.Stored) bool {
		var parsed contract.ParsedMail
		if err := json.Unmarshal(stored.Body, &parsed); err != nil {
			t.Fatal(err)
		}
		if parsed.Mail != key || parsed.Text != "How much?" || parsed.Stamp.Workflow != "sales" || parsed.Place.UID != 1 ||
			parsed.Raw.Sequence != 1 || parsed.ReceivedAt.Hour() != 8 || stored.Header[contract.HeaderMail] != key {
			t.Errorf("%+v", parsed)
		}
		return true
	})
}

func TestAMailThatIsNoReplyIsLeftAndItsBytesAreErased(t *testing.T) {
	r := startRoom(t)
	key := r.store(enquiry, repliesOnly)
	r.has(contract.StreamParsed, contract.SkippedSubject("sales"), func(stored bus.Stored) bool {
		if bytes.Contains(stored.Body, []byte("How much")) {
			t.Errorf("the receipt carries the body: %s", stored.Body)
		}
		return true
	})
	r.eventually("the bytes erased", func() bool {
		_, err := r.conn.Last(t.Context(), contract.StreamMail, contract.RawSubject("sales", key))
		return errors.Is(err, bus.ErrNotFound)
	})
	if n, err := r.conn.Count(t.Context(), contract.StreamParsed, contract.ParsedSubject("sales")); err != nil || n != 0 {
		t.Errorf("%d parsed mails, %v", n, err)
	}
	if _, err := bustest.Bucket(t, r.conn, bus.BucketSkipped).Get(t.Context(), "sales."+key); err != nil {
		t.Errorf("the decision: %v", err)
	}
	if _, refused := r.content(contract.ContentRaw, key, ""); refused != contract.ContentNotFound {
		t.Errorf("its content: %q", refused)
	}
}

func TestAnAnswerToASentMailIsAReply(t *testing.T) {
	r := startRoom(t)
	index := "sales." + contract.MessageIDKey("sales", "<offer@example.org>")
	if _, err := bustest.Bucket(t, r.conn, bus.BucketSentIndex).Put(t.Context(), index, []byte("{}")); err != nil {
		t.Fatal(err)
	}
	r.store(answer, repliesOnly)
	r.has(contract.StreamParsed, contract.ParsedSubject("sales"), func(stored bus.Stored) bool {
		return bytes.Contains(stored.Body, []byte(`"verdict":"reply"`)) &&
			bytes.Contains(stored.Body, []byte("offer@example.org"))
	})
}

func TestWhatHasMadeARequestStaysOneWhateverTheRuleSaysByNow(t *testing.T) {
	r := startRoom(t)
	key := contract.MailKey("sales", sha256.Sum256([]byte(enquiry)))
	subject := contract.ContactRequestSubject("received", "sales", "sales", key)
	out := bus.Outgoing{Subject: subject, ID: contract.OpeningID(key), Body: []byte("{}")}
	if _, err := r.conn.Publisher().Publish(t.Context(), out); err != nil {
		t.Fatal(err)
	}
	r.store(enquiry, repliesOnly)
	r.has(contract.StreamParsed, contract.ParsedSubject("sales"), nil)
	if _, err := r.conn.Last(t.Context(), contract.StreamMail, contract.RawSubject("sales", key)); err != nil {
		t.Errorf("its bytes: %v", err)
	}
}

func TestAnOrderToLookAgainCountsForItsOwnPlaceAndStamp(t *testing.T) {
	r := startRoom(t)
	key := r.store(enquiry, nil)
	r.has(contract.StreamParsed, contract.ParsedSubject("sales"), nil)
	for _, mail := range []string{key, "unknown"} { // the second has nothing to be looked at, and is no error
		order := contract.Evaluate{
			Mail: mail, Reason: "seen-again", Place: contract.Place{Epoch: "e1", Protocol: "imap", UID: 9, UIDValidity: 7},
			Stamp: contract.Stamp{Source: contract.SourceRef{ID: "sales"}, Revision: 2, Epoch: "e1", Workflow: "support"},
		}
		out, err := bus.Event(contract.TypeEvaluate, contract.EvaluateSubject("sales"), mail, "sales", order)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := r.conn.Publisher().Publish(t.Context(), out); err != nil {
			t.Fatal(err)
		}
	}
	r.has(contract.StreamParsed, contract.ParsedSubject("sales"), func(stored bus.Stored) bool {
		var parsed contract.ParsedMail
		if err := json.Unmarshal(stored.Body, &parsed); err != nil {
			t.Fatal(err)
		}
		return parsed.Place.UID == 9 && parsed.Stamp.Workflow == "support"
	})
	if n, err := r.conn.Count(t.Context(), contract.StreamDeadLetters); err != nil || n != 0 {
		t.Errorf("%d dead letters, %v", n, err)
	}
}

func TestAMessageThatIsNoRawMailIsSetAsideWhole(t *testing.T) {
	r := startRoom(t)
	key := r.store(enquiry, func(_ *contract.Stamp, header map[string]string) { header[contract.HeaderStamp] = "{" })
	r.store(answer, nil)
	r.has(contract.StreamParsed, contract.ParsedSubject("sales"), nil) // the mail behind it is not held up
	r.has(contract.StreamDeadLetters, contract.DeadLetterSubject("parser", "sales", key), func(stored bus.Stored) bool {
		var letter contract.DeadLetter
		if err := json.Unmarshal(stored.Body, &letter); err != nil {
			t.Fatal(err)
		}
		if letter.Code != "mail.failed" || string(letter.Message.Body) != enquiry {
			t.Errorf("%+v", letter)
		}
		return true
	})
}

func TestContentIsHandedOutInChunks(t *testing.T) {
	r := startRoom(t)
	large := strings.Repeat("0123456789abcdef", 50_000) // decoded: more than three chunks
	raw := "From: a@example.net\r\nMIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n" +
		"--b\r\nContent-Type: text/html; charset=iso-8859-1\r\n\r\n<p>H\xe4</p>\r\n" +
		"--b\r\nContent-Type: application/octet-stream\r\nContent-Disposition: attachment; filename=x.bin\r\n\r\n" + large + "\r\n--b--\r\n"
	key := r.store(raw, nil)
	if data, refused := r.content(contract.ContentRaw, key, ""); string(data) != raw || refused != "" {
		t.Errorf("raw: %d of %d bytes, %q", len(data), len(raw), refused)
	}
	if data, refused := r.content(contract.ContentHTML, key, ""); string(data) != "<p>Hä</p>" || refused != "" {
		t.Errorf("html: %q, %q", data, refused)
	}
	if data, refused := r.content(contract.ContentPart, key, `{"index":1}`); string(data) != large || refused != "" {
		t.Errorf("part: %d of %d bytes, %q", len(data), len(large), refused)
	}
	for what, asked := range map[string][3]string{
		"a part that is not there": {contract.ContentPart, key, `{"index":7}`},
		"a part without a number":  {contract.ContentPart, key, `{}`},
		"no JSON":                  {contract.ContentPart, key, `seven`},
		"an unknown mail":          {contract.ContentRaw, "unknown", ""},
		"a wildcard for the mail":  {contract.ContentRaw, "*", ""},
		"an unknown kind":          {"picture", key, ""},
	} {
		if data, refused := r.content(asked[0], asked[1], asked[2]); refused != contract.ContentNotFound || len(data) > 0 {
			t.Errorf("%s: %d bytes, %q", what, len(data), refused)
		}
	}
}
