package parser

import (
	"bytes"
	"strings"

	"github.com/gogs/chardet"
	"golang.org/x/net/html"

	"posthorn/pkg/reply"
)

// passage is one piece of a mail's text, with the stretches of it that its HTML marks as quoted.
type passage struct {
	text   string
	quoted []span
	html   bool
}

type span struct{ from, to int }

// plainPassage reads a text/plain part.
func plainPassage(l *leaf) (p passage, repaired string) {
	text, repaired := decodeText(l.content(), l.charset(), "")
	text = newlines(text)
	if _, params, _ := parseMedia(l.part.Header.Get("Content-Type")); strings.EqualFold(params["format"], "flowed") {
		text = unflow(text, strings.EqualFold(params["delsp"], "yes"))
	}
	return passage{text: text}, repaired
}

// htmlPassage turns a text/html part into text.
func htmlPassage(l *leaf) (p passage, repaired string, cut bool) {
	content := l.content()
	if len(content) > maxHTML {
		content, cut = content[:maxHTML], true
	}
	source, repaired := decodeHTML(content, l.charset())
	p = htmlText(source)
	return p, repaired, cut
}

// decodeHTML makes HTML UTF-8. Without a declared charset the document's own declaration counts.
func decodeHTML(content []byte, charset string) (source, repaired string) {
	return decodeText(content, charset, metaCharset(content))
}

// decodeText makes text UTF-8: by the declared charset, else by the hint, else by what the bytes look like.
func decodeText(b []byte, charset, hint string) (text, repaired string) {
	switch {
	case bytes.HasPrefix(b, []byte("\xef\xbb\xbf")):
		b, charset = b[3:], "utf-8"
	case bytes.HasPrefix(b, []byte("\xff\xfe")):
		b, charset = b[2:], "utf-16le"
	case bytes.HasPrefix(b, []byte("\xfe\xff")):
		b, charset = b[2:], "utf-16be"
	}
	if charset == "" {
		charset = hint
	}
	if charset == "" || strings.EqualFold(charset, "us-ascii") {
		if guess := guessCharset(b); guess != "" {
			text, _ = reply.ToUTF8(b, guess)
			return text, reply.CharsetWrong
		}
	}
	return reply.ToUTF8(b, charset)
}

// guessCharset looks for charsets that text without a declaration may be in, beside UTF-8 and windows-1252: only
// those that are told apart safely.
func guessCharset(b []byte) string {
	const enough = 64 << 10
	b = b[:min(len(b), enough)]
	if bytes.Contains(b, []byte("\x1b$B")) || bytes.Contains(b, []byte("\x1b$@")) {
		return "iso-2022-jp"
	}
	if _, repaired := reply.ToUTF8(b, ""); repaired != reply.CharsetWrong {
		return ""
	}
	best, err := chardet.NewTextDetector().DetectBest(b)
	if err != nil || best.Confidence < 85 || len(b) < 40 {
		return ""
	}
	switch best.Charset {
	case "GB-18030", "GB18030":
		return "gb18030"
	case "Big5", "EUC-JP", "EUC-KR", "Shift_JIS", "KOI8-R", "windows-1251":
		return best.Charset
	}
	return ""
}

// metaCharset finds what a document says about its own charset, in its first bytes.
func metaCharset(b []byte) string {
	b = b[:min(len(b), 2048)]
	for {
		at := indexFold(b, "charset")
		if at < 0 {
			return ""
		}
		b = bytes.TrimLeft(b[at+len("charset"):], " \t\r\n")
		if !bytes.HasPrefix(b, []byte("=")) {
			continue
		}
		value := bytes.TrimLeft(b[1:], " \t\r\n\"'")
		if end := bytes.IndexAny(value, " \t\r\n\"'>;/"); end >= 0 {
			value = value[:end]
		}
		if strings.HasPrefix(strings.ToLower(string(value)), "utf-16") {
			return "" // it was read as bytes, so it is none
		}
		return string(value)
	}
}

// newlines makes every line end LF.
func newlines(s string) string {
	if strings.IndexByte(s, '\r') < 0 {
		return s
	}
	return strings.ReplaceAll(strings.ReplaceAll(s, "\r\n", "\n"), "\r", "\n")
}

// unflow joins the lines of format=flowed (RFC 3676 section 4.2).
func unflow(s string, delSp bool) string {
	var out strings.Builder
	open, depth := false, 0 // the last line flows on, in this quote depth
	for i, line := range strings.Split(s, "\n") {
		content := strings.TrimLeft(line, ">")
		level := len(line) - len(content)
		content = strings.TrimPrefix(content, " ")
		signature := content == "-- "
		if i > 0 && (!open || level != depth || signature) {
			out.WriteByte('\n')
			open = false
		}
		if !open && level > 0 {
			out.WriteString(strings.Repeat(">", level) + " ")
		}
		open = strings.HasSuffix(content, " ") && !signature
		depth = level
		if open && delSp {
			content = content[:len(content)-1]
		}
		out.WriteString(content)
	}
	return out.String()
}

// htmlText walks over the tokens of an HTML document once and writes what a reader sees. It builds no tree, so no
// nesting can make it slow. Quotations get "> " before their lines.
func htmlText(source string) passage {
	z := html.NewTokenizer(strings.NewReader(source))
	w := writer{}
	var q quoteTracker
	skip := "" // inside of an element that shows nothing
	for w.out.Len() <= maxText+4096 {
		kind := z.Next()
		if kind == html.ErrorToken {
			break // io.EOF; the tokenizer has no other error without a limit on its buffer
		}
		if kind == html.TextToken {
			if skip == "" {
				w.write(string(z.Text()))
			}
			continue
		}
		if kind != html.StartTagToken && kind != html.EndTagToken && kind != html.SelfClosingTagToken {
			continue
		}
		nameBytes, hasAttr := z.TagName()
		name := string(nameBytes)
		switch {
		case skip != "":
			if kind == html.EndTagToken && name == skip {
				skip = ""
			}
			continue
		case kind != html.EndTagToken && invisible(name):
			if kind == html.StartTagToken {
				skip = name
			}
			continue
		}
		if kind == html.EndTagToken {
			w.tag(name, false)
			q.end(name, &w)
			continue
		}
		w.tag(name, true)
		if kind == html.StartTagToken {
			q.start(name, attributes(z, hasAttr), &w)
		}
	}
	q.close(&w)
	return passage{text: w.out.String(), quoted: w.spans, html: true}
}

// invisible tells the elements whose content is not shown; the tokenizer gives it as one text.
func invisible(name string) bool {
	switch name {
	case "script", "style", "title", "noscript", "noembed", "noframes", "iframe":
		return true
	}
	return false
}

// attributes are those that tell a quotation.
func attributes(z *html.Tokenizer, more bool) map[string]string {
	var found map[string]string
	for n := 0; more && n < 64; n++ {
		var key, value []byte
		key, value, more = z.TagAttr()
		switch string(key) {
		case "id", "class", "type", "style":
			if found == nil {
				found = make(map[string]string)
			}
			found[string(key)] = strings.ToLower(string(value[:min(len(value), 512)]))
		}
	}
	return found
}

// writer writes text with blanks and line breaks as a browser would show them.
type writer struct {
	out    strings.Builder
	breaks int  // line breaks that are due before the next text
	blank  bool // a blank is due
	begun  bool // the present line has text
	cites  int  // open quotations: lines get "> "
	pre    int
	spans  []span
}

// write writes the text between two tags.
func (w *writer) write(s string) {
	s = newlines(strings.ToValidUTF8(s, "\uFFFD"))
	if strings.IndexByte(s, 0) >= 0 {
		s = strings.ReplaceAll(s, "\x00", "")
	}
	for s != "" {
		end := strings.IndexAny(s, " \t\n\f")
		if end != 0 {
			word := s
			if end > 0 {
				word = s[:end]
			}
			s = s[len(word):]
			w.word(strings.ReplaceAll(word, "\u00a0", " "))
			continue
		}
		switch {
		case w.pre == 0:
			w.blank = true
		case s[0] == '\n':
			w.breaks++
			w.begun = false
		default:
			w.word(s[:1])
		}
		s = s[1:]
	}
}

func (w *writer) word(word string) {
	if strings.Trim(word, " \u200b\u200c\ufeff\u00ad\u034f") == "" && word != " " {
		w.blank = true // fillers of newsletters
		return
	}
	if w.breaks > 0 {
		if w.out.Len() > 0 {
			for range min(w.breaks, 2) {
				w.newline()
			}
		}
		w.breaks, w.blank, w.begun = 0, false, false
	}
	if !w.begun && w.cites > 0 {
		w.out.WriteString("> ")
	}
	if w.blank && w.begun {
		w.out.WriteByte(' ')
	}
	w.out.WriteString(word)
	w.begun, w.blank = true, false
}

func (w *writer) newline() { w.out.WriteByte('\n') }

// tag breaks the line where an element does.
func (w *writer) tag(name string, start bool) {
	switch name {
	case "br":
		w.breaks++
		w.begun = false
	case "p", "h1", "h2", "h3", "h4", "h5", "h6", "ul", "ol", "dl", "table", "blockquote", "pre", "hr":
		w.least(2)
		if name == "pre" && start {
			w.pre++
		} else if name == "pre" && w.pre > 0 {
			w.pre--
		}
	case "div", "tr", "section", "article", "header", "footer", "address", "form", "fieldset", "center", "dt", "dd",
		"caption", "li", "body", "main", "nav", "aside", "figure", "figcaption":
		w.least(1)
		if name == "li" && start {
			w.word("-")
			w.blank = true
		}
	case "td", "th", "option":
		w.blank = true
	}
}

func (w *writer) least(breaks int) {
	if w.out.Len() > 0 {
		w.breaks = max(w.breaks, breaks)
		w.begun = false
	}
}

// quoteTracker follows the outermost element that a document marks as quotation.
type quoteTracker struct {
	tag   string // the element that quotes; "" outside
	depth int    // of that kind of element, inside
	from  int    // where the marked stretch starts
	rest  bool   // everything from here to the end is quoted
	cites []bool // open blockquotes: whether each quotes, or only indents
}

// mostCites is how many blockquotes are told apart; deeper ones change nothing that is seen.
const mostCites = 256

func (q *quoteTracker) start(name string, attr map[string]string, w *writer) {
	cite := name == "blockquote" && !strings.Contains(strings.ReplaceAll(attr["style"], " ", ""), "border:none")
	if name == "blockquote" && len(q.cites) < mostCites {
		q.cites = append(q.cites, cite)
		if cite {
			w.cites++
		}
	}
	switch {
	case q.rest:
	case quotesRest(attr):
		if q.tag == "" {
			q.from = w.out.Len()
		}
		q.rest, q.tag = true, name
	case q.tag == name:
		q.depth++
	case q.tag == "" && (cite || quotes(attr)):
		q.tag, q.depth, q.from = name, 1, w.out.Len()
	}
}

func (q *quoteTracker) end(name string, w *writer) {
	if name == "blockquote" && len(q.cites) > 0 {
		if q.cites[len(q.cites)-1] {
			w.cites--
		}
		q.cites = q.cites[:len(q.cites)-1]
	}
	if q.rest || q.tag == "" || name != q.tag {
		return
	}
	if q.depth--; q.depth == 0 {
		q.close(w)
	}
}

// close ends the marked stretch where the text ends now.
func (q *quoteTracker) close(w *writer) {
	if q.tag != "" && w.out.Len() > q.from {
		w.spans = append(w.spans, span{q.from, w.out.Len()})
	}
	q.tag = ""
}

// quotes tells an element in which mail programs put what they quote.
func quotes(attr map[string]string) bool {
	for _, class := range strings.Fields(attr["class"]) {
		switch class {
		case "gmail_quote", "gmail_quote_container", "gmail_extra", "yahoo_quoted", "protonmail_quote", "moz-cite-prefix",
			"zmail_extra", "tutanota_quote", "front-blockquote", "qt-quote", "ms-outlook-mobile-reference-message":
			return true
		}
	}
	return attr["type"] == "cite"
}

// quotesRest tells an element after which nothing but quotation follows, as Outlook writes it.
func quotesRest(attr map[string]string) bool {
	id := strings.TrimPrefix(attr["id"], "x_")
	switch id {
	case "divrplyfwdmsg", "appendonsend", "olk_src_body_section", "mail-editor-reference-message-container", "replysplit":
		return true
	}
	style := strings.ReplaceAll(attr["style"], " ", "")
	return strings.Contains(style, "border-top:solid#e1e1e1") || strings.Contains(style, "border-top:solid#b5c4df")
}

// remove cuts spans, which are in order, out of s.
func remove(s string, spans []span) string {
	if len(spans) == 0 {
		return s
	}
	var out strings.Builder
	at := 0
	for _, cut := range spans {
		from, to := min(max(cut.from, at), len(s)), min(cut.to, len(s))
		out.WriteString(s[at:from])
		at = max(at, to)
	}
	out.WriteString(s[min(at, len(s)):])
	return out.String()
}

// tidy takes blanks off the ends of lines, and empty lines beyond one.
func tidy(s string) string {
	var out strings.Builder
	empty := 0
	for line := range strings.SplitSeq(s, "\n") {
		line = strings.TrimRight(line, " \t")
		if line == "" {
			empty++
			continue
		}
		if out.Len() > 0 {
			out.WriteString(strings.Repeat("\n", min(empty, 1)+1))
		}
		empty = 0
		out.WriteString(line)
	}
	return out.String()
}
