package client_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"strconv"
	"testing"
	"testing/iotest"

	"posthorn/pkg/client"
	"posthorn/pkg/contract"

	"github.com/nats-io/nats.go"
)

// chunk is one message of an answer.
type chunk struct {
	number string
	data   []byte
	last   bool
	code   string
	length string
}

// answer lets the broker answer requests on a subject with these chunks; the requests' bodies are sent to asked.
func answer(t *testing.T, b *broker, subject string, chunks ...chunk) (asked chan []byte) {
	t.Helper()
	asked = make(chan []byte, 1)
	subscription, err := b.conn.Subscribe(subject, func(request *nats.Msg) {
		asked <- request.Data
		for _, c := range chunks {
			message := nats.NewMsg(request.Reply)
			message.Data = c.data
			for name, value := range map[string]string{
				contract.HeaderChunk: c.number, contract.HeaderError: c.code, contract.HeaderContentLength: c.length,
			} {
				if value != "" {
					message.Header.Set(name, value)
				}
			}
			if c.last {
				message.Header.Set(contract.HeaderLast, "true")
			}
			if err := b.conn.PublishMsg(message); err != nil {
				t.Error(err)
			}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	closed := make(chan bool)
	subscription.SetClosedHandler(func(string) { close(closed) })
	t.Cleanup(func() { // the answer is given to its end, though nobody may listen any more
		if err := subscription.Unsubscribe(); err != nil {
			t.Error(err)
		}
		receive(t, "the answer ends", closed)
	})
	return asked
}

// split cuts content into an answer as the parser gives it.
func split(content []byte, size int) []chunk {
	var chunks []chunk
	for number := 0; ; number++ {
		n := min(size, len(content))
		chunks = append(chunks, chunk{number: strconv.Itoa(number), data: content[:n]})
		content = content[n:]
		if len(content) == 0 {
			break
		}
	}
	return chunks
}

func whole(content []byte, size int) []chunk {
	chunks := split(content, size)
	chunks[0].length = strconv.Itoa(len(content))
	chunks[len(chunks)-1].last = true
	return chunks
}

func TestContentArrivesByteForByte(t *testing.T) {
	b := newBroker(t)
	large := bytes.Repeat([]byte("posthorn "), 300_000)
	for name, content := range map[string][]byte{"large": large, "small": []byte("Hei\r\n"), "empty": {}} {
		answer(t, b, contract.ContentSubject(contract.ContentRaw, "inbox", name), whole(content, 256<<10)...)
		reader, err := client.Content(t.Context(), b.conn, contract.ContentRaw, "inbox", name, 0)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		got, err := io.ReadAll(iotest.HalfReader(reader))
		if err != nil || sha256.Sum256(got) != sha256.Sum256(content) {
			t.Errorf("%s: %d of %d bytes, %v", name, len(got), len(content), err)
		}
		if err := reader.Close(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestAnEventHandsOutItsMailItsHTMLAndItsAttachments(t *testing.T) {
	b := newBroker(t)
	answer(t, b, "content.v1.raw.inbox.k1", whole([]byte("Subject: Hei"), 5)...)
	answer(t, b, "content.v1.html.inbox.k1", whole([]byte("<p>Hei"), 5)...)
	asked := answer(t, b, "content.v1.part.inbox.k1", whole([]byte("JPEG"), 5)...)
	s := subscribe(t, b, client.Options{Conn: b.conn})
	b.publish("received", "sales", "inbox", "k1", nil)
	e := receive(t, "the event arrives", s.events)

	for want, ask := range map[string]func(context.Context) (io.ReadCloser, error){
		"Subject: Hei": e.Raw, "<p>Hei": e.HTML,
		"JPEG": func(ctx context.Context) (io.ReadCloser, error) { return e.Attachment(ctx, 3) },
	} {
		reader, err := ask(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(reader); err != nil || string(got) != want {
			t.Errorf("got %q, %v", got, err)
		}
		if err := reader.Close(); err != nil {
			t.Error(err)
		}
	}
	if body := receive(t, "the parser is asked", asked); string(body) != `{"index":3}` {
		t.Errorf("asked for %s", body)
	}
}

func TestWhyContentIsNotGivenOutIsSaid(t *testing.T) {
	b := newBroker(t)
	for code, want := range map[string]error{
		contract.ContentNotFound: client.ErrNotFound, contract.ContentExpired: client.ErrExpired,
		contract.ContentErased: client.ErrErased, contract.ContentForbidden: client.ErrForbidden,
	} {
		answer(t, b, "content.v1.raw.inbox."+code, chunk{number: "0", code: code, last: true})
		if _, err := client.Content(t.Context(), b.conn, contract.ContentRaw, "inbox", code, 0); !errors.Is(err, want) {
			t.Errorf("%s: got %v", code, err)
		}
	}
	answer(t, b, "content.v1.raw.inbox.later", chunk{number: "0", code: "moved_to_mars", last: true})
	if _, err := client.Content(t.Context(), b.conn, contract.ContentRaw, "inbox", "later", 0); err == nil {
		t.Error("an error of a later version is none")
	}
	_, err := client.Content(t.Context(), b.conn, contract.ContentRaw, "inbox", "none", 0)
	if !errors.Is(err, client.ErrNoAnswer) {
		t.Errorf("nobody is there: got %v", err)
	}
	_, err = client.Content(t.Context(), b.conn, contract.ContentRaw, "*", ">", 0)
	if !errors.Is(err, client.ErrNotFound) {
		t.Errorf("wildcards: got %v", err)
	}
}

func TestContentThatIsNotWholeIsNeverTakenForWhole(t *testing.T) {
	b := newBroker(t)
	content := []byte("0123456789")
	lost := whole(content, 2)
	lost = append(lost[:2], lost[3:]...)
	twice := whole(content, 2)
	twice = append(twice[:2], twice[1:]...)
	short := whole(content, 2)
	short[0].length = "11"
	broken := split(content, 2)[:2]
	broken = append(broken, chunk{number: "2", code: contract.ContentExpired, last: true})
	for name, c := range map[string]struct {
		chunks []chunk
		want   error
	}{
		"lost": {lost, client.ErrIncomplete}, "twice": {twice, client.ErrIncomplete},
		"short": {short, client.ErrIncomplete}, "expired": {broken, client.ErrExpired},
	} {
		answer(t, b, "content.v1.raw.inbox."+name, c.chunks...)
		reader, err := client.Content(t.Context(), b.conn, contract.ContentRaw, "inbox", name, 0)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if got, err := io.ReadAll(reader); !errors.Is(err, c.want) {
			t.Errorf("%s: %q, %v", name, got, err)
		}
		if err := reader.Close(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	answer(t, b, "content.v1.raw.inbox.second", chunk{number: "1", data: content, last: true})
	_, err := client.Content(t.Context(), b.conn, contract.ContentRaw, "inbox", "second", 0)
	if !errors.Is(err, client.ErrIncomplete) {
		t.Errorf("the first chunk is missing: got %v", err)
	}
}

func TestAnAnswerThatNeverEndsEndsWithItsContext(t *testing.T) {
	b := newBroker(t)
	answer(t, b, "content.v1.raw.inbox.k1", split([]byte("0123456789"), 5)...)
	ctx, cancel := context.WithCancel(t.Context())
	reader, err := client.Content(ctx, b.conn, contract.ContentRaw, "inbox", "k1", 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(reader, make([]byte, 10)); err != nil {
		t.Fatal(err)
	}
	cancel()
	if _, err := reader.Read(make([]byte, 1)); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if err := reader.Close(); err != nil {
		t.Error(err)
	}
}
