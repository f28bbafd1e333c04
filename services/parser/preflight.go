package parser

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode"

	"posthorn/pkg/fault"
	"posthorn/pkg/reply"
)

// Opener opens the bytes of one mail; it can be called several times.
type Opener func() (io.ReadCloser, error)

// survey is what one linear pass over a mail finds out before anything expensive is done to it.
type survey struct {
	header   []byte // the header block, at most Limits.HeaderBytes of it
	offset   int64  // where the body starts
	size     int64  // bytes of the whole mail
	bareCR   bool   // lines end with CR alone
	noHeader bool   // the mail is all body
	mended   bool   // something stands before the header that is none
	over     string // the limit that the mail exceeds, "" for none
	flat     bool   // do not open multiparts: everything after the header is text
	// delimiters counts the lines "--boundary" of each declared boundary.
	delimiters map[string]int
}

// look makes the pass. An error is an error of reading the bytes, never of the mail.
func look(ctx context.Context, open Opener, size int64, limits Limits) (survey, error) {
	rc, err := open()
	if err != nil {
		return survey{}, err
	}
	defer func() { _ = rc.Close() }() // read only: nothing is lost when closing fails

	s := survey{delimiters: make(map[string]int)}
	r := bufio.NewReaderSize(&counter{ctx: ctx, r: rc, n: &s.size}, 64<<10)
	start, err := r.Peek(64 << 10)
	if err != nil && !errors.Is(err, io.EOF) {
		return survey{}, err
	}
	s.bareCR = bytes.IndexByte(start, '\n') < 0 && bytes.IndexByte(start, '\r') >= 0
	if s.bareCR {
		r = bufio.NewReaderSize(&lineEnds{r}, 64<<10)
	}

	if err := s.readHeader(r, limits); err != nil {
		return survey{}, err
	}
	if size > limits.Bytes {
		s.over = "bytes"
	}
	err = nil
	if s.over == "" {
		err = s.scan(r, limits)
	}
	if err == nil && s.over != "" { // only the size is still wanted
		if size >= 0 {
			s.size = size
		} else if _, err = io.Copy(io.Discard, r); err == nil && s.size > limits.Bytes {
			s.over = "bytes"
		}
	}
	if err != nil {
		return survey{}, err
	}
	if size >= 0 && s.size != size {
		return survey{}, fault.New(fault.StoreCorrupt,
			fmt.Errorf("announced %d bytes, read %d: %w", size, s.size, io.ErrUnexpectedEOF), nil)
	}
	return s, nil
}

// readHeader takes the header block into memory and leaves r at the body.
func (s *survey) readHeader(r *bufio.Reader, limits Limits) error {
	var block []byte
	lines, content, ended := 0, false, false
	for !ended {
		line, err := r.ReadSlice('\n')
		block = append(block, line...)
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) && !errors.Is(err, io.EOF) {
			return err
		}
		if err == nil {
			lines++
		}
		blank := len(bytes.Trim(line, "\r\n")) == 0 && err == nil
		content = content || !blank
		switch {
		case len(block) > limits.HeaderBytes:
			s.over = "header bytes"
		case lines > limits.HeaderLines:
			s.over = "header lines"
		}
		ended = errors.Is(err, io.EOF) || blank && content && endsHeader(block) || s.over != ""
	}
	header, body := reply.SplitHeader(block)
	if s.over != "" && len(header) == 0 && len(block) > 0 {
		// No header in all that: the mail is one long body without a header, which is no matter of limits.
		s.over = ""
	}
	s.header = header
	s.noHeader = len(header) == 0
	s.offset = int64(len(block) - len(body))
	s.mended = !s.noHeader && !bytes.HasPrefix(block, header[:min(len(header), 16)])
	if s.over != "" {
		s.header = block[:min(len(block), limits.HeaderBytes)]
	}
	return nil
}

// endsHeader tells whether a block that ends with an empty line is more than a byte order mark or an mbox line.
func endsHeader(block []byte) bool {
	first, rest, _ := bytes.Cut(bytes.TrimLeft(block, "\r\n\xef\xbb\xbf"), []byte("\n"))
	return !bytes.HasPrefix(first, []byte("From ")) || len(bytes.TrimSpace(rest)) > 0
}

// scan reads the body once. It collects every `boundary=` that is declared anywhere and counts the lines that are
// delimiters of one, without building anything: whatever nesting a mail claims, this is linear.
func (s *survey) scan(r *bufio.Reader, limits Limits) error {
	s.declare(s.header)
	parts, headerBytes, headerLines := 0, 0, 0
	inHeader, lineStart := false, true
	for {
		line, err := r.ReadSlice('\n')
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) && !errors.Is(err, io.EOF) {
			return err
		}
		if s.size > limits.Bytes {
			s.over = "bytes"
			return nil
		}
		switch {
		case lineStart && s.delimiter(line):
			parts++
			inHeader, headerBytes, headerLines = true, 0, 0
		case inHeader:
			if lineStart && len(bytes.TrimRight(line, "\r\n")) == 0 {
				inHeader = false
				break
			}
			headerBytes += len(line)
			headerLines++
			s.declare(line)
		case bytes.IndexByte(line, '=') >= 0:
			s.declare(line)
		}
		switch {
		case parts > limits.Parts:
			s.over = "parts"
		case len(s.delimiters) > limits.Boundaries:
			s.over = "boundaries"
		case headerBytes > limits.HeaderBytes:
			s.over = "header bytes"
		case headerLines > limits.HeaderLines:
			s.over = "header lines"
		}
		if s.over != "" || errors.Is(err, io.EOF) {
			return nil
		}
		lineStart = err == nil
	}
}

// declare notes the boundaries that b declares.
func (s *survey) declare(b []byte) {
	const key = "boundary"
	for len(b) > len(key) {
		at := indexFold(b, key)
		if at < 0 {
			return
		}
		b = b[at+len(key):]
		value := bytes.TrimLeft(b, " \t")
		if !bytes.HasPrefix(value, []byte("=")) {
			continue
		}
		value = bytes.TrimLeft(value[1:], " \t")
		var end int
		if bytes.HasPrefix(value, []byte(`"`)) {
			value = value[1:]
			end = bytes.IndexAny(value, "\"\r\n")
		} else {
			end = bytes.IndexAny(value, "; \t\r\n")
		}
		if end < 0 {
			end = len(value)
		}
		name := strings.TrimRight(string(value[:min(end, maxBoundary+1)]), " \t")
		if name == "" || len(name) > maxBoundary {
			continue
		}
		if _, known := s.delimiters[name]; !known {
			s.delimiters[name] = 0
		}
	}
}

// maxBoundary is the longest boundary that is taken; RFC 2046 section 5.1.1 allows 70.
const maxBoundary = 200

// delimiter tells whether a line is a delimiter of a declared boundary, and counts it. Like enmime it takes any line
// that starts with "--boundary" and a blank.
func (s *survey) delimiter(line []byte) bool {
	if !bytes.HasPrefix(line, []byte("--")) {
		return false
	}
	line = line[2:]
	for i := range min(len(line), maxBoundary+1) {
		if !unicode.IsSpace(rune(line[i])) {
			continue
		}
		if n, ok := s.delimiters[string(line[:i])]; ok {
			s.delimiters[string(line[:i])] = n + 1
			return true
		}
	}
	return false
}

// indexFold is the index of an ASCII word in lower case, without case, -1 when it does not occur.
func indexFold(b []byte, word string) int {
	for from := 0; from+len(word) <= len(b); {
		at := bytes.IndexAny(b[from:], word[:1]+strings.ToUpper(word[:1]))
		if at < 0 || from+at+len(word) > len(b) {
			return -1
		}
		from += at
		if strings.EqualFold(string(b[from:from+len(word)]), word) {
			return from
		}
		from++
	}
	return -1
}

// counter counts what is read and ends when the context does.
type counter struct {
	ctx context.Context
	r   io.Reader
	n   *int64
}

func (c *counter) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := c.r.Read(p)
	*c.n += int64(n)
	return n, err
}

// lineEnds turns CR into LF, for mails whose lines end with CR alone.
type lineEnds struct{ r io.Reader }

func (l *lineEnds) Read(p []byte) (int, error) {
	n, err := l.r.Read(p)
	for i, c := range p[:n] {
		if c == '\r' {
			p[i] = '\n'
		}
	}
	return n, err
}
