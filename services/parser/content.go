package parser

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"strconv"
	"strings"

	"posthorn/pkg/bus"
	"posthorn/pkg/contract"
)

// chunkSize of an answer to a content request; well below the smallest message limit a NATS server is likely to have.
const chunkSize = 256 << 10

// answerContent answers content.v1 requests: any parser may answer any of them.
func (p *Parser) answerContent(ctx context.Context) error {
	return p.deps.Conn.Respond(ctx, contract.ContentSubject("*", "*", "*"), "parser", p.content)
}

// content answers one request with the raw bytes of a mail, its HTML, or one of its parts.
func (p *Parser) content(ctx context.Context, request bus.Request) error {
	tokens := strings.Split(request.Subject, ".")
	kind, source, key := tokens[2], tokens[3], tokens[4]
	if !contract.ValidToken(source) || !contract.ValidToken(key) { // a wildcard would find a mail of which no key is known
		return refuse(request, contract.ContentNotFound)
	}
	stored, err := p.deps.Conn.Last(ctx, contract.StreamMail, contract.RawSubject(source, key))
	if errors.Is(err, bus.ErrNotFound) {
		return refuse(request, p.absent(ctx, source, key))
	}
	if err != nil {
		return err
	}
	mail, err := readStored(*stored)
	if err != nil {
		return err
	}
	if kind == contract.ContentRaw { // streamed, whatever its size
		raw, err := p.opener(ctx, mail)()
		if err != nil {
			return err
		}
		return errors.Join(send(request, raw, mail.raw.Size), raw.Close())
	}
	weight := min(max(mail.raw.Size, 64<<10), p.cfg.Memory)
	if err := p.memory.Acquire(ctx, weight); err != nil {
		return err
	}
	defer p.memory.Release(weight)
	data, found, err := p.part(ctx, kind, mail, request.Body)
	if err != nil {
		return err
	}
	if !found {
		return refuse(request, contract.ContentNotFound)
	}
	return send(request, bytes.NewReader(data), int64(len(data)))
}

// part reads the HTML or one part of a stored mail.
func (p *Parser) part(ctx context.Context, kind string, mail storedMail, body []byte) ([]byte, bool, error) {
	switch kind {
	case contract.ContentHTML:
		return HTML(ctx, p.opener(ctx, mail), mail.raw.Size, p.cfg.Limits)
	case contract.ContentPart:
		var asked struct {
			Index *int `json:"index"`
		}
		if err := json.Unmarshal(body, &asked); err != nil || asked.Index == nil {
			return nil, false, nil //nolint:nilerr // a request that names no part finds none
		}
		_, data, found, err := Part(ctx, p.opener(ctx, mail), mail.raw.Size, *asked.Index, p.cfg.Limits)
		return data, found, err
	}
	return nil, false, nil
}

// absent tells why a mail's bytes are not there: expired when the mail has made a request once, else not found.
func (p *Parser) absent(ctx context.Context, source, key string) string {
	last, err := p.deps.Conn.Last(ctx, contract.StreamContactRequests, contract.ContactRequestFilter(source, key))
	if err != nil {
		return contract.ContentNotFound
	}
	if event, _, _, _, err := contract.ContactRequestKeys(last.Subject); err == nil && event == contract.EventErased {
		return contract.ContentErased
	}
	return contract.ContentExpired
}

func refuse(request bus.Request, why string) error {
	return request.Reply(map[string]string{
		contract.HeaderChunk: "0", contract.HeaderLast: "true", contract.HeaderError: why,
	}, nil)
}

// send answers in numbered chunks; the first says how long the whole is.
func send(request bus.Request, from io.Reader, size int64) error {
	buffer := make([]byte, chunkSize)
	sent := int64(0)
	for number := 0; ; number++ {
		n, err := io.ReadFull(from, buffer)
		if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
			return err
		}
		sent += int64(n)
		last := err != nil || sent >= size
		header := map[string]string{contract.HeaderChunk: strconv.Itoa(number)}
		if number == 0 {
			header[contract.HeaderContentLength] = strconv.FormatInt(size, 10)
		}
		if last {
			header[contract.HeaderLast] = "true"
		}
		if err := request.Reply(header, buffer[:n:n]); err != nil || last {
			return err
		}
	}
}
