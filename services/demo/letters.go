package demo

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"mime"
	"mime/quotedprintable"
	"strings"
	"time"

	"golang.org/x/text/encoding"
	"golang.org/x/text/encoding/charmap"
	"golang.org/x/text/encoding/japanese"
	"golang.org/x/text/encoding/simplifiedchinese"
)

// letter is a mail as a person would tell it; write makes the bytes of it that a mail program would send.
type letter struct {
	from, to string // "Name <address>"
	subject  string
	text     string
	html     string
	charset  string // default utf-8
	// fields are further header fields, in order, ready to be sent.
	fields []string
	files  []file
	// report makes it a delivery report: the machine-readable part (RFC 3464).
	report string
	// id is the Message-ID; made by write when it is empty.
	id string
}

type file struct {
	name, kind string
	data       []byte
}

// answers makes a letter one that answers others, the last of which it answers directly.
func (l letter) answers(ids ...string) letter {
	l.fields = append(append([]string(nil), l.fields...),
		"In-Reply-To: "+ids[len(ids)-1], "References: "+strings.Join(ids, "\r\n "))
	return l
}

// newID makes a Message-ID at the domain of an address.
func newID(address string) string {
	domain := strings.TrimSuffix(address[strings.LastIndexByte(address, '@')+1:], ">")
	return "<" + strings.ToLower(rand.Text()[:20]) + "@" + domain + ">"
}

// write makes the mail.
func (l *letter) write(at time.Time) []byte {
	if l.id == "" {
		l.id = newID(l.from)
	}
	if l.charset == "" {
		l.charset = "utf-8"
	}
	var out bytes.Buffer
	field := func(format string, args ...any) { fmt.Fprintf(&out, format+"\r\n", args...) }
	field("Received: from mx.example.net (mx.example.net [192.0.2.25])\r\n\tby mail.posthorn.example with ESMTPS; %s",
		at.Format(time.RFC1123Z))
	field("Date: %s", at.Format(time.RFC1123Z))
	field("From: %s", l.address(l.from))
	field("To: %s", l.address(l.to))
	field("Subject: %s", l.word(l.subject))
	field("Message-ID: %s", l.id)
	for _, f := range l.fields {
		field("%s", f)
	}
	field("MIME-Version: 1.0")
	l.body(&out)
	return out.Bytes()
}

// body writes what follows the header fields that all mails have.
func (l *letter) body(out *bytes.Buffer) {
	switch {
	case l.report != "":
		multipart(out, `multipart/report; report-type=delivery-status`, func(part func()) {
			part()
			l.leaf(out, "text/plain", l.text)
			part()
			fmt.Fprintf(out, "Content-Type: message/delivery-status\r\n\r\n%s", l.report)
		})
	case len(l.files) > 0:
		multipart(out, "multipart/mixed", func(part func()) {
			part()
			l.content(out)
			for _, f := range l.files {
				part()
				name := mime.QEncoding.Encode("utf-8", f.name)
				fmt.Fprintf(out, "Content-Type: %s; name=%q\r\nContent-Disposition: attachment; filename=%q\r\n"+
					"Content-Transfer-Encoding: base64\r\n\r\n", f.kind, name, name)
				fold(out, f.data)
			}
		})
	default:
		l.content(out)
	}
}

func (l *letter) content(out *bytes.Buffer) {
	switch {
	case l.text == "":
		l.leaf(out, "text/html", l.html)
	case l.html == "":
		l.leaf(out, "text/plain", l.text)
	default:
		multipart(out, "multipart/alternative", func(part func()) {
			part()
			l.leaf(out, "text/plain", l.text)
			part()
			l.leaf(out, "text/html", l.html)
		})
	}
}

// leaf writes one text: as it is when it is 7 bit, base64 for gb2312, else quoted-printable.
func (l *letter) leaf(out *bytes.Buffer, kind, text string) {
	content := []byte(strings.ReplaceAll(text, "\n", "\r\n"))
	content = l.encode(content)
	fmt.Fprintf(out, "Content-Type: %s; charset=%s\r\n", kind, l.charset)
	switch l.charset {
	case "iso-2022-jp":
		fmt.Fprint(out, "Content-Transfer-Encoding: 7bit\r\n\r\n")
		out.Write(append(content, "\r\n"...))
	case "gb2312":
		fmt.Fprint(out, "Content-Transfer-Encoding: base64\r\n\r\n")
		fold(out, content)
	default:
		fmt.Fprint(out, "Content-Transfer-Encoding: quoted-printable\r\n\r\n")
		w := quotedprintable.NewWriter(out)
		_, _ = w.Write(content) // a buffer takes everything
		_ = w.Close()
		out.WriteString("\r\n")
	}
}

func (l *letter) encode(text []byte) []byte {
	var with encoding.Encoding
	switch l.charset {
	case "iso-8859-1":
		with = charmap.ISO8859_1
	case "windows-1252":
		with = charmap.Windows1252
	case "gb2312":
		with = simplifiedchinese.GBK // GB 2312 in its usual form is a part of it
	case "iso-2022-jp":
		with = japanese.ISO2022JP
	default:
		return text
	}
	encoded, err := encoding.ReplaceUnsupported(with.NewEncoder()).Bytes(text)
	if err != nil {
		return text
	}
	return encoded
}

// word is a header text (RFC 2047) in the letter's charset.
func (l *letter) word(text string) string {
	if strings.IndexFunc(text, func(r rune) bool { return r > '~' }) < 0 {
		return text
	}
	if l.charset == "utf-8" {
		return mime.QEncoding.Encode("utf-8", text)
	}
	return "=?" + l.charset + "?B?" + base64.StdEncoding.EncodeToString(l.encode([]byte(text))) + "?="
}

// address is "Name <address>" with the name as a header word.
func (l *letter) address(person string) string {
	name, address, ok := strings.Cut(person, " <")
	if !ok {
		return person
	}
	return l.word(name) + " <" + address
}

// multipart writes a multipart entity; part begins the next of its parts.
func multipart(out *bytes.Buffer, kind string, parts func(part func())) {
	boundary := "=_" + rand.Text()
	fmt.Fprintf(out, "Content-Type: %s;\r\n boundary=%q\r\n\r\n", kind, boundary)
	parts(func() { fmt.Fprintf(out, "\r\n--%s\r\n", boundary) })
	fmt.Fprintf(out, "\r\n--%s--\r\n", boundary)
}

func fold(out *bytes.Buffer, data []byte) {
	text := base64.StdEncoding.EncodeToString(data)
	for len(text) > 76 {
		out.WriteString(text[:76] + "\r\n")
		text = text[76:]
	}
	out.WriteString(text + "\r\n")
}
