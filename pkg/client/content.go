package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"sync"
	"time"

	"posthorn/pkg/contract"

	"github.com/nats-io/nats.go"
)

// Errors of [Content], and of reading what it returns.
var (
	// ErrNotFound means that there is no such mail, or no such part in it.
	ErrNotFound = errors.New("no such content")
	// ErrExpired means that the mail was taken in, and is not kept any more.
	ErrExpired = errors.New("the content is no longer kept")
	// ErrErased means that the mail was erased at somebody's request.
	ErrErased = errors.New("the content was erased")
	// ErrForbidden means that Posthorn does not give this content out.
	ErrForbidden = errors.New("the content may not be read")
	// ErrIncomplete means that the answer ended early, or that a piece of it is missing. Asking again may help.
	ErrIncomplete = errors.New("the content did not arrive whole")
	// ErrNoAnswer means that no parser of Posthorn runs, or that it is too busy to answer. Asking again later helps.
	ErrNoAnswer = errors.New("nobody answers for content")
)

// chunkWait is how long the next chunk of an answer may take.
const chunkWait = 15 * time.Second

// Content asks for stored content of a mail: the whole mail (kind [contract.ContentRaw]), its HTML
// ([contract.ContentHTML]) or one attachment ([contract.ContentPart], with the attachment's index; other kinds ignore
// it). Source and mail are the id and the key that events carry. The caller closes what is returned; ctx must live
// until then.
//
// io.EOF means that every byte has arrived: what is lost on the way makes Read fail with [ErrIncomplete].
func Content(
	ctx context.Context, conn *nats.Conn, kind, source, mail string, index int,
) (io.ReadCloser, error) {
	if !contract.ValidToken(kind) || !contract.ValidToken(source) || !contract.ValidToken(mail) {
		return nil, fmt.Errorf("%w: %q of mail %q of source %q", ErrNotFound, kind, mail, source)
	}
	var body []byte
	if kind == contract.ContentPart {
		var err error
		if body, err = json.Marshal(map[string]int{"index": index}); err != nil {
			return nil, err
		}
	}
	inbox := conn.NewInbox()
	answers, err := conn.SubscribeSync(inbox)
	if err != nil {
		return nil, fmt.Errorf("asking for content: %w", err)
	}
	// One mail's size bounds what can wait here; the default limits would drop chunks of a large one.
	if err := answers.SetPendingLimits(-1, -1); err != nil {
		return nil, errors.Join(err, answers.Unsubscribe())
	}
	c := &content{ctx: ctx, answers: answers, length: -1}
	if err := conn.PublishRequest(contract.ContentSubject(kind, source, mail), inbox, body); err != nil {
		return nil, errors.Join(fmt.Errorf("asking for content: %w", err), c.Close())
	}
	if err := c.next(); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

// content reads the chunks of one answer.
type content struct {
	ctx     context.Context //nolint:containedctx // a reader has no other way to take one
	answers *nats.Subscription
	chunk   []byte // what is left of the present chunk
	number  int    // of the next chunk
	last    bool   // the present chunk is the last
	length  int64  // of the whole as announced, or -1
	got     int64
	err     error
	close   sync.Once
}

// Read implements [io.Reader].
func (c *content) Read(p []byte) (int, error) {
	for len(c.chunk) == 0 && c.err == nil {
		if c.last {
			c.err = io.EOF
			if c.length >= 0 && c.got != c.length {
				c.err = fmt.Errorf("%w: %d of %d bytes", ErrIncomplete, c.got, c.length)
			}
			break
		}
		c.err = c.next()
	}
	if len(c.chunk) == 0 {
		return 0, c.err
	}
	n := copy(p, c.chunk)
	c.chunk = c.chunk[n:]
	return n, nil
}

// Close implements [io.Closer]: no more chunks are received.
func (c *content) Close() (err error) {
	c.close.Do(func() {
		err = c.answers.Unsubscribe()
		if c.err == nil {
			c.chunk, c.err = nil, errClosed
		}
	})
	return err
}

var errClosed = errors.New("read of closed content")

// next waits for the next chunk and checks that it is the next one.
func (c *content) next() error {
	waiting, cancel := context.WithTimeout(c.ctx, chunkWait)
	defer cancel()
	message, err := c.answers.NextMsgWithContext(waiting)
	switch {
	case errors.Is(err, nats.ErrNoResponders):
		return ErrNoAnswer
	case err != nil && c.ctx.Err() != nil:
		return c.ctx.Err()
	case err != nil && c.number == 0:
		return fmt.Errorf("%w: %w", ErrNoAnswer, err)
	case err != nil:
		return fmt.Errorf("%w: chunk %d: %w", ErrIncomplete, c.number, err)
	}
	if code := message.Header.Get(contract.HeaderError); code != "" {
		return contentError(code)
	}
	number, err := strconv.Atoi(message.Header.Get(contract.HeaderChunk))
	if err != nil || number != c.number {
		return fmt.Errorf("%w: chunk %q came after %d chunks", ErrIncomplete,
			message.Header.Get(contract.HeaderChunk), c.number)
	}
	if c.number == 0 {
		if length, err := strconv.ParseInt(message.Header.Get(contract.HeaderContentLength), 10, 64); err == nil {
			c.length = length
		}
	}
	c.number++
	c.chunk, c.last = message.Data, message.Header.Get(contract.HeaderLast) == "true"
	c.got += int64(len(message.Data))
	return nil
}

func contentError(code string) error {
	switch code {
	case contract.ContentNotFound:
		return ErrNotFound
	case contract.ContentExpired:
		return ErrExpired
	case contract.ContentErased:
		return ErrErased
	case contract.ContentForbidden:
		return ErrForbidden
	default:
		return fmt.Errorf("asking for content: %s", code)
	}
}
