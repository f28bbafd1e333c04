package e2e

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"math/rand/v2"
	"mime"
	"mime/quotedprintable"
	"strings"
	"testing"
	"time"

	"golang.org/x/text/encoding"
	"golang.org/x/text/encoding/charmap"
	"golang.org/x/text/encoding/japanese"
	"golang.org/x/text/encoding/simplifiedchinese"
)

// generator makes mails of every kind that a mailbox gets. The same seed makes the same mails; no two are equal.
type generator struct {
	seed   string
	to     string
	random *rand.Rand
	number int
	date   time.Time
	ids    []string // of the mails made so far
}

func newGenerator(seed, to string) *generator {
	var key [32]byte
	copy(key[:], seed)
	return &generator{
		seed: seed, to: to, random: rand.New(rand.NewChaCha8(key)), //nolint:gosec // mails for tests
		date: time.Date(2026, 11, 1, 8, 0, 0, 0, time.UTC),
	}
}

// marker is a text that stands in the body of this mail only.
func (g *generator) marker() string { return fmt.Sprintf("marker-%s-%d-end", g.seed, g.number) }

// head begins a mail; fields replace those it would have, an empty value leaves the field out.
func (g *generator) head(fields ...string) *bytes.Buffer {
	g.number++
	g.date = g.date.Add(time.Minute)
	id := fmt.Sprintf("<%s.%d@mail.example.net>", g.seed, g.number)
	standard := [][2]string{
		{"Received", "from relay.example.net by mx.example.org; " + g.date.Format(time.RFC1123Z)},
		{"Date", g.date.Format(time.RFC1123Z)},
		{"From", fmt.Sprintf("Person %d <person%d@customer.example>", g.number, g.number)},
		{"To", g.to},
		{"Subject", fmt.Sprintf("Mail number %d of %s", g.number, g.seed)},
		{"Message-ID", id},
	}
	var out bytes.Buffer
	for _, field := range standard {
		name, value := field[0], field[1]
		for i := 0; i < len(fields); i += 2 {
			if strings.EqualFold(fields[i], name) {
				value = fields[i+1]
			}
		}
		if value != "" {
			out.WriteString(name + ": " + value + "\r\n")
		}
		if name == "Message-ID" && value != "" {
			g.ids = append(g.ids, value)
		}
	}
	for i := 0; i < len(fields); i += 2 {
		known := false
		for _, field := range standard {
			known = known || strings.EqualFold(field[0], fields[i])
		}
		if !known {
			out.WriteString(fields[i] + ": " + fields[i+1] + "\r\n")
		}
	}
	return &out
}

// text is a few lines of prose with the mail's marker.
func (g *generator) text() string {
	words := strings.Fields("please send us your offer for the desks and chairs that we have seen in the shop on Monday " +
		"with the price of each and the time it takes to deliver them thank you and best regards from all of us here")
	var out strings.Builder
	for range 3 + g.random.IntN(12) {
		for range 4 + g.random.IntN(8) {
			out.WriteString(words[g.random.IntN(len(words))] + " ")
		}
		out.WriteString("\r\n")
	}
	return out.String() + ".a line that begins with a dot\r\n" + g.marker() + "\r\n"
}

func (g *generator) plain(fields ...string) []byte {
	out := g.head(fields...)
	out.WriteString("\r\n" + g.text())
	return out.Bytes()
}

func (g *generator) html() []byte {
	out := g.head("MIME-Version", "1.0", "Content-Type", "text/html; charset=utf-8",
		"Content-Transfer-Encoding", "quoted-printable")
	out.WriteString("\r\n")
	w := quotedprintable.NewWriter(out)
	_, _ = fmt.Fprintf(w, "<html><body><h1>Kysymys n:o %d</h1>\r\n<p>Hyvää päivää! %s</p></body></html>\r\n", g.number,
		g.text()) // a buffer takes everything
	_ = w.Close()
	out.WriteString("\r\n")
	return out.Bytes()
}

// part is one part of a multipart entity: its header fields, a blank line, its body.
func (g *generator) parts(out *bytes.Buffer, kind string, parts ...string) {
	boundary := fmt.Sprintf("=_%s_%d_%d", g.seed, g.number, g.random.Uint32())
	fmt.Fprintf(out, "MIME-Version: 1.0\r\nContent-Type: %s; boundary=%q\r\n\r\n", kind, boundary)
	for _, part := range parts {
		out.WriteString("--" + boundary + "\r\n" + part + "\r\n")
	}
	out.WriteString("--" + boundary + "--\r\n")
}

func (g *generator) alternative() []byte {
	out := g.head()
	text := g.text()
	g.parts(out, "multipart/alternative", "Content-Type: text/plain; charset=us-ascii\r\n\r\n"+text,
		"Content-Type: text/html; charset=us-ascii\r\n\r\n<p>"+text+"</p>")
	return out.Bytes()
}

func (g *generator) attachment(size int) []byte {
	out := g.head()
	data := make([]byte, size)
	for i := range data {
		data[i] = byte(g.random.Uint32())
	}
	g.parts(out, "multipart/mixed", "Content-Type: text/plain; charset=us-ascii\r\n\r\n"+g.text(),
		fmt.Sprintf("Content-Type: application/pdf; name=\"offer %d.pdf\"\r\nContent-Disposition: attachment; "+
			"filename=\"offer %d.pdf\"\r\nContent-Transfer-Encoding: base64\r\n\r\n", g.number, g.number)+fold(data))
	return out.Bytes()
}

func fold(data []byte) string {
	text := base64.StdEncoding.EncodeToString(data)
	var out strings.Builder
	for len(text) > 76 {
		out.WriteString(text[:76] + "\r\n")
		text = text[76:]
	}
	return out.String() + text
}

// reply answers a mail with an id.
func (g *generator) reply(id string) []byte {
	return g.plain("Subject", fmt.Sprintf("Re: Mail about desks (%d)", g.number), "In-Reply-To", id, "References",
		"<first.of.all@example.org>\r\n "+id)
}

func (g *generator) absent(id string) []byte {
	return g.plain("Subject", "Automatic reply: your mail", "Auto-Submitted", "auto-replied", "In-Reply-To", id,
		"X-Auto-Response-Suppress", "All")
}

// bounce is a delivery report (RFC 3464) about the mail with an id.
func (g *generator) bounce(id string) []byte {
	out := g.head("From", "Mail Delivery System <MAILER-DAEMON@mx.example.net>", "Subject",
		"Undelivered Mail Returned to Sender", "Auto-Submitted", "auto-replied", "In-Reply-To", id, "References", id,
		"Return-Path", "<>")
	g.parts(out, "multipart/report; report-type=delivery-status",
		"Content-Type: text/plain\r\n\r\nYour mail could not be delivered.\r\n"+g.marker(),
		"Content-Type: message/delivery-status\r\n\r\nReporting-MTA: dns; mx.example.net\r\n\r\nFinal-Recipient: rfc822; "+
			"nobody@example.net\r\nAction: failed\r\nStatus: 5.1.1\r\n",
		"Content-Type: text/rfc822-headers\r\n\r\nMessage-ID: "+id+"\r\nSubject: the mail that came back\r\n")
	return out.Bytes()
}

func (g *generator) newsletter() []byte {
	return g.plain("From", "News <news@lists.example>", "List-Id", "News <news.lists.example>", "List-Unsubscribe",
		"<https://lists.example/unsubscribe>", "Precedence", "bulk")
}

// in is a mail in a charset, subject and body, as it is or in base64.
func (g *generator) in(name string, charset encoding.Encoding, text string, inBase64 bool) []byte {
	encoded, err := charset.NewEncoder().Bytes([]byte(text + "\r\n"))
	if err != nil {
		panic(err) // the texts below are in their charsets
	}
	subject := "=?" + name + "?B?" + base64.StdEncoding.EncodeToString(bytes.TrimSpace(encoded)) + "?="
	fields := []string{"Subject", subject, "MIME-Version", "1.0", "Content-Type", "text/plain; charset=" + name}
	if inBase64 {
		out := g.head(append(fields, "Content-Transfer-Encoding", "base64")...)
		out.WriteString("\r\n" + fold(append(encoded, g.marker()+"\r\n"...)) + "\r\n")
		return out.Bytes()
	}
	out := g.head(append(fields, "Content-Transfer-Encoding", "8bit")...)
	out.WriteString("\r\n")
	out.Write(encoded)
	out.WriteString(g.marker() + "\r\n")
	return out.Bytes()
}

// next makes a mail of the next kind.
func (g *generator) next() []byte {
	answered := "<somebody.elses@example.com>"
	if len(g.ids) > 0 {
		answered = g.ids[g.random.IntN(len(g.ids))]
	}
	switch g.number % 20 {
	case 1:
		return g.html()
	case 2:
		return g.alternative()
	case 3:
		return g.attachment(2000 + g.random.IntN(30000))
	case 4, 5:
		return g.reply(answered)
	case 6:
		return g.absent(answered)
	case 7:
		return g.bounce(answered)
	case 8:
		return g.newsletter()
	case 9:
		return g.in("iso-8859-1", charmap.ISO8859_1, "Hyvää päivää, hälsningar från Åbo", false)
	case 10:
		return g.in("windows-1252", charmap.Windows1252, "Grüße – „ruhig“ für 30 €", false)
	case 11:
		return g.in("gb2312", simplifiedchinese.GBK, "您好,请发送价格表", true)
	case 12:
		return g.in("iso-2022-jp", japanese.ISO2022JP, "お世話になっております。会議用テーブル", false)
	case 13:
		return g.plain("Message-ID", "")
	case 14:
		return g.plain("Message-ID", "<the.same.again@mail.example.net>")
	case 15:
		return g.in("utf-8", encoding.Nop, "Käsittelemätön teksti 8-bittisenä: 你好", false)
	case 16:
		return g.plain("Subject", "Kysymys ääkkösistä, raakana", "From", "Äiti <aiti@customer.example>")
	case 17:
		long := strings.Repeat(" <"+strings.Repeat("r", 50)+"@mail.example.net>\r\n", 60)
		return g.plain("References", "<first@mail.example.net>\r\n"+strings.TrimSuffix(long, "\r\n"), "Subject",
			strings.TrimSuffix(strings.Repeat("a very long subject\r\n ", 120), "\r\n "))
	case 18:
		inner := "Content-Type: message/rfc822\r\n\r\nFrom: a@inner.example\r\nSubject: " +
			mime.QEncoding.Encode("utf-8", "välitetty") + "\r\n\r\ninner text\r\n"
		out := g.head()
		g.parts(out, "multipart/mixed", "Content-Type: text/plain\r\n\r\n"+g.text(), inner)
		return out.Bytes()
	case 19:
		return g.plain("Date", "", "From", "", "To", "")
	default:
		return g.plain()
	}
}

// mixed makes n mails of every kind, three of them large.
func (g *generator) mixed(n int) [][]byte {
	mails := make([][]byte, n)
	for i := range mails {
		switch i {
		case n / 7:
			mails[i] = g.attachment(800 << 10)
		case n / 3:
			mails[i] = g.attachment(1500 << 10)
		case n / 2:
			mails[i] = g.attachment(2200 << 10)
		default:
			mails[i] = g.next()
		}
	}
	return mails
}

func TestNoTwoGeneratedMailsAreEqual(t *testing.T) {
	seen := map[string]bool{}
	for _, mails := range [][][]byte{
		newGenerator("one", "a@example.org").mixed(100), newGenerator("two", "a@example.org").mixed(100),
	} {
		for i, raw := range mails {
			if seen[string(raw)] {
				t.Errorf("mail %d came before", i)
			}
			seen[string(raw)] = true
			bare := bytes.Contains(bytes.ReplaceAll(raw, []byte("\r\n"), nil), []byte("\n"))
			if bare || !bytes.HasSuffix(raw, []byte("\r\n")) {
				t.Errorf("mail %d has other line ends than CRLF: %q", i, raw[max(0, len(raw)-80):])
			}
		}
	}
}
