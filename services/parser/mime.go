package parser

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"strings"

	"github.com/jhillyerd/enmime/v2"
	"github.com/jhillyerd/enmime/v2/mediatype"

	"posthorn/pkg/reply"
)

// opaque marks text types for enmime, so that it decodes their transfer encoding only: an attached text keeps its
// bytes, and the charset of a text body is our own business (enmime's guess reads short or Chinese texts wrongly).
const opaque = "opaque-"

// closed marks a multipart beyond Limits.Depth, which is kept as one attachment.
const closed = "closed-"

// tree is the MIME structure of a mail.
type tree struct {
	root     *enmime.Part
	warnings []string
	deep     bool // multiparts beyond Limits.Depth were left closed
}

// errStopped is what a mail's reader says when the time is up.
var errStopped = errors.New("reading stopped")

// readTree gives the mail to enmime. The header block goes in as the fields that matter to MIME, rebuilt, so nothing
// odd in it can stop the parser. A nil root without an error means that enmime failed; limit is "time" when it took
// too long. An error is an error of reading the bytes, or of the context.
func readTree(ctx context.Context, open Opener, s *survey, header reply.Header, limits Limits) (
	t tree, limit string, err error,
) {
	rc, err := open()
	if err != nil {
		return tree{}, "", err
	}
	timed, cancel := context.WithTimeout(ctx, limits.Time)
	source := &source{ctx: timed, r: rc}
	var body io.Reader = source
	if s.bareCR {
		body = &lineEnds{source}
	}
	done := make(chan tree, 1)
	defer cancel()
	go func() {
		defer func() { _ = rc.Close() }() // read only: nothing is lost when closing fails
		defer func() {
			if p := recover(); p != nil { // the mail is kept and shown as failed; the panic is a bug of a library
				done <- tree{warnings: []string{"parser-panic"}}
			}
		}()
		if _, err := io.CopyN(io.Discard, body, s.offset); err != nil {
			done <- tree{}
			return
		}
		t := tree{}
		in := io.MultiReader(bytes.NewReader(mimeHeader(header)), body)
		root, err := newEnmime(s, limits, &t).ReadParts(in)
		if err != nil {
			t.warnings = append(t.warnings, "mime-failed")
		} else {
			t.root = root
		}
		done <- t
	}()
	select {
	case t = <-done:
		switch {
		case ctx.Err() != nil:
			return tree{}, "", ctx.Err()
		case source.failed != nil:
			return tree{}, "", source.failed
		case source.stopped:
			return tree{}, "time", nil
		}
		return t, "", nil
	case <-timed.Done(): // the goroutine ends at its next read
		return tree{}, "time", ctx.Err()
	}
}

// newEnmime is enmime with everything lenient: whatever can be kept of a mail is kept.
func newEnmime(s *survey, limits Limits, t *tree) *enmime.Parser {
	opened := make(map[string]bool)
	warned := make(map[string]bool)
	warn := func(code string) {
		if !warned[code] {
			warned[code] = true
			t.warnings = append(t.warnings, code)
		}
	}
	parse := func(value string) (string, map[string]string, []string, error) {
		media, params, repaired := parseMedia(value)
		if repaired {
			warn("malformed-header")
		}
		boundary := params["boundary"]
		count, known := s.delimiters[boundary]
		switch {
		case !strings.HasPrefix(media, "multipart/"):
			delete(params, "boundary")
		case boundary == "":
			warn("missing-boundary")
		case s.flat:
			delete(params, "boundary")
		case len(boundary) > maxBoundary, known && count == 0:
			// No part would ever be found, and enmime would lose the text: it stays one part.
			warn("missing-boundary")
			delete(params, "boundary")
		case !opened[boundary] && len(opened) >= limits.Depth:
			t.deep = true
			delete(params, "boundary")
			return closed + media, params, nil, nil
		default:
			opened[boundary] = true
		}
		return mark(media), params, nil, nil
	}
	return enmime.NewParser(
		enmime.MaxStoredPartErrors(20),
		enmime.SkipMalformedParts(true),
		enmime.MultipartWOBoundaryAsSinglePart(true),
		enmime.DisableTextConversion(true),
		enmime.DisableCharacterDetection(true),
		enmime.SetCustomParseMediaType(parse),
		enmime.SetReadPartErrorPolicy(func(*enmime.Part, error) bool { return true }),
	)
}

func mark(media string) string {
	if strings.HasPrefix(media, "text/") {
		return opaque + media
	}
	return media
}

// mimeHeader is the header block that enmime gets to see.
func mimeHeader(header reply.Header) []byte {
	var b bytes.Buffer
	for _, name := range []string{"Content-Type", "Content-Transfer-Encoding", "Content-Disposition", "Content-ID"} {
		if value := header.Get(name); value != "" {
			fmt.Fprintf(&b, "%s: %s\r\n", name, value)
		}
	}
	if header.Get("Content-Type") == "" {
		b.WriteString("Content-Type: text/plain\r\n")
	}
	b.WriteString("\r\n")
	return b.Bytes()
}

// parseMedia reads a Content-Type or Content-Disposition (RFC 2045 section 5.1, RFC 2183). It never fails: of a value
// that cannot be read, what stands before the first semicolon is taken if it is a type at all, else text/plain if it
// says text, else application/octet-stream. The file names of RFC 2231 are read in every charset.
func parseMedia(value string) (media string, params map[string]string, repaired bool) {
	media, params, invalid, err := mediatype.ParseWithOptions(value,
		mediatype.ParseOptions{StripMediaTypeInvalidCharacters: true})
	repaired = err != nil || len(invalid) > 0
	if err != nil {
		first, _, _ := strings.Cut(value, ";")
		media = strings.ToLower(strings.TrimSpace(first))
		params = nil
		if b := looseParam(value, "boundary"); b != "" {
			params = map[string]string{"boundary": b}
		}
		if c := looseParam(value, "charset"); c != "" {
			if params == nil {
				params = make(map[string]string)
			}
			params["charset"] = c
		}
	}
	if _, _, err := mime.ParseMediaType(media); media != "" && err != nil {
		media, repaired = "", true
	}
	if params == nil {
		params = make(map[string]string)
	}
	for _, name := range []string{"filename", "name"} {
		if strings.Contains(strings.ToLower(value), name+"*") {
			if decoded := extended(value, name); decoded != "" {
				params[name] = decoded
			}
		}
	}
	switch {
	case media == "attachment", media == "inline", strings.Contains(media, "/"):
	case media == "" && strings.TrimSpace(value) == "":
		return "", params, false
	case strings.HasPrefix(media, "text"):
		media, repaired = "text/plain", true
	case media == "" && strings.HasPrefix(strings.ToLower(strings.TrimSpace(value)), "text"):
		media, repaired = "text/plain", true
	case media == "":
		media, repaired = "application/octet-stream", true
	}
	return media, params, repaired
}

// looseParam finds a parameter in a value that a strict reader refuses.
func looseParam(value, name string) string {
	at := indexFold([]byte(value), name+"=")
	if at < 0 {
		return ""
	}
	value = strings.TrimLeft(value[at+len(name)+1:], " \t")
	if quoted, ok := strings.CutPrefix(value, `"`); ok {
		value, _, _ = strings.Cut(quoted, `"`)
		return value
	}
	if end := strings.IndexAny(value, "; \t\r\n"); end >= 0 {
		value = value[:end]
	}
	return value
}

// extended reads a parameter in the extended notation of RFC 2231 (`name*=utf-8”a%20b`, `name*0*=…; name*1=…`), in
// any charset. It is "" when the value has none.
func extended(value, name string) string {
	const most = 64 // pieces
	pieces := make(map[string]string)
	encoded := make(map[string]bool)
	for part := range splitParams(value) {
		key, val, ok := strings.Cut(part, "=")
		key = strings.ToLower(strings.TrimSpace(key))
		rest, isOurs := strings.CutPrefix(key, name+"*")
		if !ok || !isOurs || len(pieces) >= most {
			continue
		}
		number, star := strings.CutSuffix(rest, "*")
		if rest == "" {
			number, star = "0", true
		}
		if _, twice := pieces[number]; !twice {
			pieces[number] = strings.Trim(strings.TrimSpace(val), `"`)
			encoded[number] = star
		}
	}
	charset := ""
	var out []byte
	for i := range most {
		number := fmt.Sprint(i)
		piece, ok := pieces[number]
		if !ok {
			break
		}
		if encoded[number] {
			if i == 0 {
				if fields := strings.SplitN(piece, "'", 3); len(fields) == 3 {
					charset, piece = fields[0], fields[2]
				}
			}
			out = append(out, percent(piece)...)
		} else {
			out = append(out, piece...)
		}
	}
	text, _ := reply.ToUTF8(out, charset)
	return text
}

// splitParams yields what stands between semicolons outside of quotes.
func splitParams(value string) func(yield func(string) bool) {
	return func(yield func(string) bool) {
		start, quoted := 0, false
		for i := range len(value) {
			switch value[i] {
			case '"':
				quoted = !quoted
			case ';':
				if !quoted {
					if !yield(value[start:i]) {
						return
					}
					start = i + 1
				}
			}
		}
		yield(value[start:])
	}
}

// percent decodes %XX and leaves everything else as it is.
func percent(s string) []byte {
	const digits = "0123456789abcdef"
	out := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		if s[i] == '%' && i+2 < len(s) {
			lower := strings.ToLower(s[i+1 : i+3])
			high, low := strings.IndexByte(digits, lower[0]), strings.IndexByte(digits, lower[1])
			if high >= 0 && low >= 0 {
				out = append(out, byte(high<<4|low))
				i += 2
				continue
			}
		}
		out = append(out, s[i])
	}
	return out
}

// source reads the raw mail until the context ends, and remembers an error that is not the end of the mail.
type source struct {
	ctx    context.Context
	r      io.Reader
	failed error
	// stopped tells that the context ended before the mail did.
	stopped bool
}

func (s *source) Read(p []byte) (int, error) {
	if s.ctx.Err() != nil {
		s.stopped = true
		return 0, errStopped
	}
	n, err := s.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		s.failed = err
	}
	return n, err
}

// leaf is a part that holds content, with its position among all leaves of the mail, depth first from 0.
type leaf struct {
	part  *enmime.Part
	index int
	media string // without parameters, lower case, "" when the part has no Content-Type
	// plain and html tell that the part is text of the mail itself, no attachment.
	plain, html bool
	inline      bool
	closed      bool // a multipart that was too deep to open
	name        string
}

// content returns what the part holds, transfer decoding done.
func (l *leaf) content() []byte { return l.part.Content }

// charset is the declared one.
func (l *leaf) charset() string { return l.part.Charset }

// leaves lists the parts that hold content.
func leaves(root *enmime.Part) []*leaf {
	var list []*leaf
	var walk func(p *enmime.Part)
	walk = func(p *enmime.Part) {
		if p.FirstChild != nil {
			for c := p.FirstChild; c != nil; c = c.NextSibling {
				walk(c)
			}
			return
		}
		if p.Boundary != "" && len(p.Content) == 0 && p != root {
			return // an empty multipart
		}
		list = append(list, newLeaf(p, len(list)))
	}
	walk(root)
	markBody(list)
	return list
}

func newLeaf(p *enmime.Part, index int) *leaf {
	l := &leaf{part: p, index: index, media: strings.ToLower(strings.TrimPrefix(p.ContentType, opaque))}
	disposition := strings.ToLower(p.Disposition)
	l.name = p.FileName
	if p.ContentType == "" { // enmime reads no disposition of a part without a type
		media, params, _ := parseMedia(p.Header.Get("Content-Disposition"))
		disposition = media
		l.name = params["filename"]
	}
	if l.media == "" {
		l.media = "text/plain" // RFC 2045 section 5.2
		if p.Parent != nil && strings.EqualFold(p.Parent.ContentType, "multipart/digest") {
			l.media = "message/rfc822"
		}
	}
	l.media, l.closed = strings.CutPrefix(l.media, closed)
	l.name = fileName(l.name)
	if !strings.Contains(l.media, "/") { // "html", "pdf": no type at all
		switch {
		case l.media == "html":
			l.media = "text/html"
		case disposition != "attachment" && l.name == "":
			l.media = "text/plain"
		default:
			l.media = "application/octet-stream"
		}
	}
	related := p.Parent != nil && p.Parent.ContentType == "multipart/related"
	l.inline = disposition == "inline" || disposition != "attachment" && p.ContentID != "" && related
	if disposition == "attachment" || l.name != "" {
		return l
	}
	switch {
	case l.media == "text/html":
		l.html = true
	case l.media == "text/plain":
		l.plain = true
	case strings.HasPrefix(l.media, "multipart/"): // no delimiter occurs: what it holds is shown as text
		l.plain = p.Boundary == "" && !l.closed
	}
	return l
}

// markBody makes a named inline text the body of a mail that has none: some programs name every part.
func markBody(list []*leaf) {
	for _, l := range list {
		if l.plain || l.html {
			return
		}
	}
	for _, l := range list {
		if strings.EqualFold(l.part.Disposition, "attachment") {
			continue
		}
		switch l.media {
		case "text/plain":
			l.plain = true
			return
		case "text/html":
			l.html = true
			return
		}
	}
}

// fileName makes a file name harmless: decoded, one line, no folders.
func fileName(name string) string {
	name, _ = reply.ToUTF8([]byte(name), "")
	name = reply.DecodeWords(name)
	if cut := strings.LastIndexAny(name, `/\`); cut >= 0 {
		name = name[cut+1:]
	}
	return strings.TrimSpace(name)
}
