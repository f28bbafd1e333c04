package parser

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"posthorn/pkg/contract"
	"posthorn/pkg/fault"
)

var update = flag.Bool("update", false, "write the golden files")

// given opens bytes.
func given(raw []byte) Opener {
	return func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(raw)), nil }
}

func mustRead(t testing.TB, raw []byte) Parsed {
	t.Helper()
	p, err := Read(context.Background(), given(raw), int64(len(raw)), Limits{})
	if err != nil {
		t.Fatal(err)
	}
	mustBeSound(t, p)
	return p
}

// mustBeSound checks what holds for every mail whatever is in it.
func mustBeSound(t testing.TB, p Parsed) {
	t.Helper()
	body, err := json.Marshal(contract.ParsedMail{Content: p.Content})
	if err != nil {
		t.Fatal(err)
	}
	if len(body) > 850_000 {
		t.Fatalf("the event has %d bytes", len(body))
	}
	if !slices.Contains([]string{StatusOK, StatusRepaired, StatusLimits, StatusFailed}, p.Parse.Status) {
		t.Fatalf("status %q", p.Parse.Status)
	}
	if (p.Parse.Status == StatusLimits) != (p.Limit != "") && p.Parse.Status != StatusFailed {
		t.Fatalf("status %q with limit %q", p.Parse.Status, p.Limit)
	}
	for _, s := range texts(p) {
		if !utf8.ValidString(s) || strings.ContainsRune(s, 0) {
			t.Fatalf("not clean: %.200q", s)
		}
	}
	if len(p.Text) > maxText || len(p.TextReply) > maxReply || len(p.References) > maxReferences ||
		len(p.Attachments) > maxAttachments || len(p.Parse.Warnings) > maxWarnings {
		t.Fatal("a cap does not hold")
	}
}

func texts(p Parsed) []string {
	list := []string{p.Subject, p.MessageID, p.Text, p.TextReply, p.ReturnedID, p.Limit, p.Machine}
	list = append(append(append(list, p.InReplyTo...), p.References...), p.Parse.Warnings...)
	for _, a := range slices.Concat(p.ReplyTo, p.To, p.CC) {
		list = append(list, a.Name, a.Address)
	}
	if p.From != nil {
		list = append(list, p.From.Name, p.From.Address)
	}
	for _, a := range p.Attachments {
		list = append(list, a.Filename, a.ContentType, a.ContentID, a.SHA256)
	}
	for _, f := range p.Header {
		list = append(list, f.Name, f.Value)
	}
	return list
}

func TestRealMailIsReadAsItsGoldenFileSays(t *testing.T) {
	files, err := filepath.Glob("testdata/*.eml")
	if err != nil || len(files) < 25 {
		t.Fatalf("%d sample mails, %v", len(files), err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".eml"), func(t *testing.T) {
			raw, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			p := mustRead(t, raw)
			got, err := json.MarshalIndent(struct {
				contract.Content
				ReceivedDate time.Time `json:"received_date,omitzero"`
				ReturnedID   string    `json:"returned_id,omitempty"`
				PartClass    string    `json:"part_class,omitempty"`
			}{p.Content, p.ReceivedDate, p.ReturnedID, p.PartClass}, "", "  ")
			if err != nil {
				t.Fatal(err)
			}
			golden := strings.TrimSuffix(file, ".eml") + ".golden.json"
			if *update {
				if err := os.WriteFile(golden, append(got, '\n'), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(bytes.TrimSpace(want)), string(got)); diff != "" {
				t.Error(diff)
			}
			for _, a := range p.Attachments {
				again, content, ok, err := Part(context.Background(), given(raw), int64(len(raw)), a.Index, Limits{})
				if err != nil || !ok || again != a {
					t.Fatalf("part %d: %+v %v %v, want %+v", a.Index, again, ok, err, a)
				}
				if sum := sha256.Sum256(content); hex.EncodeToString(sum[:]) != a.SHA256 || int64(len(content)) != a.Size {
					t.Errorf("part %d has other bytes than its event says", a.Index)
				}
			}
			html, ok, err := HTML(context.Background(), given(raw), int64(len(raw)), Limits{})
			if err != nil || ok != p.HasHTML || ok != (len(html) > 0) || !utf8.Valid(html) {
				t.Errorf("HTML: %v %v, has_html %v", ok, err, p.HasHTML)
			}
		})
	}
}

func TestAnAttachedTextKeepsItsBytes(t *testing.T) {
	raw := []byte("Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n\r\nhi\r\n--b\r\n" +
		"Content-Type: text/csv; charset=utf-8\r\nContent-Disposition: attachment; filename=a.csv\r\n\r\n\xf6ljy;1\x00\r\n--b--\r\n")
	p := mustRead(t, raw)
	if len(p.Attachments) != 1 {
		t.Fatalf("%+v", p.Attachments)
	}
	_, content, ok, err := Part(context.Background(), given(raw), -1, p.Attachments[0].Index, Limits{})
	if err != nil || !ok || string(content) != "\xf6ljy;1\x00" {
		t.Errorf("%q %v %v", content, ok, err)
	}
	if _, _, ok, err := Part(context.Background(), given(raw), -1, 99, Limits{}); ok || err != nil {
		t.Errorf("part 99: %v %v", ok, err)
	}
}

func TestTextInEveryCharsetIsReadable(t *testing.T) {
	for name, tc := range map[string]struct{ charset, body, want string }{
		"unknown charset":      {"x-klingon", "Hyv\xe4\xe4", "Hyvää"},
		"latin-1 as utf-8":     {"utf-8", "Hyv\xe4\xe4", "Hyvää"},
		"no charset, latin-1":  {"", "Hyv\xe4\xe4", "Hyvää"},
		"no charset, JIS":      {"", "\x1b$B$3\x1b(B", "こ"},
		"euc-kr":               {"ks_c_5601-1987", "\xbe\xc8\xb3\xe7", "안녕"},
		"big5":                 {"big5", "\xa7\x41\xa6\x6e", "你好"},
		"koi8-r":               {"koi8-r", "\xf0\xd2\xc9\xd7\xc5\xd4", "Привет"},
		"iso-8859-15":          {"iso-8859-15", "\xa4", "€"},
		"utf-16":               {"utf-16", "\xff\xfeh\x00i\x00", "hi"},
		"NUL":                  {"us-ascii", "a\x00b", "ab"},
		"damaged":              {"utf-8", "ää\xff", "ää\uFFFD"},
		"long Finnish, no tag": {"", strings.Repeat("T\xe4m\xe4 on t\xe4ysin tavallista suomea, \xe4l\xe4 s\xe4ik\xe4hd\xe4. ", 30), ""},
	} {
		t.Run(name, func(t *testing.T) {
			raw := "Subject: x\r\n"
			if tc.charset != "" {
				raw += "Content-Type: text/plain; charset=" + tc.charset + "\r\n"
			}
			p := mustRead(t, []byte(raw+"\r\n"+tc.body))
			want := tc.want
			if want == "" {
				want = strings.TrimSpace(strings.ReplaceAll(tc.body, "\xe4", "ä"))
			}
			if p.Text != want {
				t.Errorf("got %q", p.Text)
			}
		})
	}
}

func TestHostileMailIsReadSoon(t *testing.T) {
	nested := func(n int) string {
		var b strings.Builder
		b.WriteString("Subject: deep\r\n")
		for i := range n {
			fmt.Fprintf(&b, "Content-Type: multipart/mixed; boundary=b%d\r\n\r\n--b%d\r\n", i, i)
		}
		b.WriteString("Content-Type: text/plain\r\n\r\ninside\r\n")
		return b.String()
	}
	const multi = "Subject: many\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n"
	html := "Subject: html\r\nContent-Type: text/html\r\n\r\n"
	for name, tc := range map[string]struct {
		raw    string
		status string
		text   string // a part of it
	}{
		"empty":                         {"", "failed", ""},
		"only line ends":                {"\r\n\r\n\n", "failed", ""},
		"one NUL":                       {"\x00", "repaired", ""},
		"100000 parts":                  {multi + strings.Repeat("--b\r\n\r\nx\r\n", 100_000), "limits", ""},
		"100000 parts with blanks":      {multi + strings.Repeat("--b x\r\n\r\nx\r\n", 100_000), "limits", ""},
		"parts in disguise":             {multi + "--b\r\n" + strings.Repeat("\rX--b \nY--b \n\nx\n", 5_000), "", ""},
		"a part that enmime refuses":    {multi + "--b\r\n\r\nthis stays\rX--b \nnot one\n--b--", "", "this stays"},
		"2000 levels":                   {nested(2000), "limits", ""},
		"60 levels":                     {nested(60), "limits", ""},
		"12 levels":                     {nested(12), "repaired", "inside"},
		"10 MB of header":               {"Subject: big\r\nX: " + strings.Repeat("x", 10<<20) + "\r\n\r\nbody", "limits", ""},
		"a million header lines":        {"Subject: big\r\n" + strings.Repeat("X: y\r\n", 1_000_000) + "\r\nbody", "limits", ""},
		"10 MB of part header":          {multi + "--b\r\nX: " + strings.Repeat("x", 10<<20) + "\r\n\r\nbody\r\n--b--", "limits", ""},
		"a million part header lines":   {multi + "--b\r\n" + strings.Repeat("X: y\r\n", 1_000_000) + "\r\nbody\r\n--b--", "limits", ""},
		"a boundary that never comes":   {multi + "all of this stays", "repaired", "all of this stays"},
		"only the closing boundary":     {multi + "all of this stays\r\n--b--\r\n", "repaired", "all of this stays"},
		"a boundary inside never comes": {multi + "--b\r\nContent-Type: multipart/alternative; boundary=c\r\n\r\nthis stays\r\n--b--", "repaired", "this stays"},
		"no boundary given":             {"Content-Type: multipart/mixed\r\n\r\nthis stays", "repaired", "this stays"},
		"a boundary of 5000 bytes": {"Content-Type: multipart/mixed; boundary=" + strings.Repeat("b", 5000) + "\r\n\r\n--" +
			strings.Repeat("b", 5000) + "\r\n\r\nthis stays", "repaired", "this stays"},
		"CR line ends":         {"Subject: old Mac\rTo: a@b\r\rthis stays\rand this\r", "repaired", "this stays\nand this"},
		"CR line ends, parts":  {strings.ReplaceAll(multi, "\r\n", "\r") + "--b\r\rthis stays\r--b--\r", "repaired", "this stays"},
		"mbox line":            {"From a@b Mon Nov 23\nSubject: x\n\nbody", "repaired", "body"},
		"no header":            {"just text\r\nof two lines", "repaired", "just text\nof two lines"},
		"header only":          {"Subject: x\r\nFrom: a@b\r\n", "ok", ""},
		"junk before header":   {"!!!\r\nSubject: x\r\n\r\nbody", "", "body"},
		"NUL everywhere":       {"Sub\x00ject: a\x00b\r\n\r\nc\x00d", "ok", "cd"},
		"invalid UTF-8":        {"Subject: \xff\xfe\r\nFrom: \xff <a@b>\r\n\r\n\xff\xfe\xfd", "", ""},
		"random bytes":         {strings.Repeat("\x80\x00\xff:\n=?\r", 100_000), "", ""},
		"bad content type":     {"Content-Type: ;;;===\r\n\r\nbody", "", ""},
		"content type html":    {multi + "--b\r\nContent-Type: <html>\r\n\r\n<p>body</p>\r\n--b--", "", "body"},
		"content type text":    {"Content-Type: text\r\n\r\nbody", "repaired", "body"},
		"bad base64":           {"Content-Transfer-Encoding: base64\r\n\r\n!!!!aGVsbG8=????x", "", "hello"},
		"one line of 30 MB":    {"Subject: x\r\n\r\n" + strings.Repeat("x", 30<<20), "ok", "xxx"},
		"30 MB of line ends":   {"Subject: x\r\n\r\n" + strings.Repeat("\n", 30<<20), "ok", ""},
		"400000 nested div":    {html + strings.Repeat("<div>", 400_000) + "inside", "ok", "inside"},
		"200000 blockquotes":   {html + strings.Repeat("<blockquote>", 200_000) + "inside", "ok", "inside"},
		"blockquotes with br":  {html + strings.Repeat("<blockquote><br>x", 100_000), "ok", "x"},
		"an unclosed comment":  {html + "before<!--" + strings.Repeat("x", 5<<20), "ok", "before"},
		"a 7 MB attribute":     {html + `before<img src="data:` + strings.Repeat("x", 7<<20) + `">after`, "ok", "beforeafter"},
		"a million entities":   {html + strings.Repeat("&lt;", 1_000_000), "ok", "<<<"},
		"a million attributes": {html + "<p " + strings.Repeat("a=b ", 1_000_000) + ">text", "ok", "text"},
		"a million quotes":     {"Subject: x\r\n\r\n" + strings.Repeat(">\n", 1_000_000), "ok", ">"},
		"attribution bomb":     {"Subject: x\r\n\r\n" + strings.Repeat("On 1.1.2026 a@b wrote\n", 12_000), "ok", "wrote"},
		"signature bomb":       {"Subject: x\r\n\r\nhi\n" + strings.Repeat("-- \nOn 1:\n", 25_000), "ok", "hi"},
		"from bomb":            {"Subject: x\r\n\r\n" + strings.Repeat("From: x\nTo: y\n", 18_000), "ok", "From"},
		"rule bomb":            {"Subject: x\r\n\r\n" + strings.Repeat("________________\n", 15_000), "ok", "___"},
		"many addresses":       {"To: " + strings.Repeat("<a@b>,", 30_000) + "\r\n\r\nx", "ok", "x"},
		"many references":      {"References: " + strings.Repeat("<a@b> ", 30_000) + "<c@d>\r\n\r\nx", "ok", "x"},
		"extended name bomb": {"Content-Type: x/y; " + strings.Repeat("name*1*=%41;", 10_000) + "\r\n\r\nx",
			"", ""},
		"900 attachments": {multi + strings.Repeat("--b\r\nContent-Disposition: attachment; filename=\""+strings.Repeat("<", 300)+
			"\"\r\nContent-ID: <"+strings.Repeat("&", 300)+">\r\n\r\nx\r\n", 900), "limits", ""},
		"boundaries by the thousand": {"Subject: x\r\n\r\n" + func() string {
			var b strings.Builder
			for i := range 100_000 {
				fmt.Fprintf(&b, "boundary=b%d\r\n", i)
			}
			return b.String()
		}(), "limits", ""},
	} {
		t.Run(name, func(t *testing.T) {
			start := time.Now()
			p := mustRead(t, []byte(tc.raw))
			if d := time.Since(start); d > 20*time.Second {
				t.Errorf("took %v", d)
			}
			if tc.status != "" && p.Parse.Status != tc.status || !strings.Contains(p.Text, tc.text) {
				t.Errorf("%+v %.100q", p.Parse, p.Text)
			}
			if strings.HasPrefix(tc.raw, "Subject: ") && p.Subject == "" && name != "invalid UTF-8" {
				t.Error("the subject is lost")
			}
		})
	}
}

func TestAnEventFitsHoweverItsTextIsEscaped(t *testing.T) {
	for name, fill := range map[string]string{"less-than": "<", "control": "\x01", "quote": `"`, "separator": "\u2028x", "emoji": "🙂", "line ends": "\n-"} {
		t.Run(name, func(t *testing.T) {
			long := strings.Repeat(fill, 400_000/len(fill))
			short := strings.ReplaceAll(strings.Repeat(fill, 300/len(fill)), "\n", "")
			addr := strings.Repeat(`"`+strings.ReplaceAll(short, `"`, "")+`" <`+strings.Repeat("&", 60)+"@example.org>, ", 120)
			var refs strings.Builder
			for i := range 100 {
				fmt.Fprintf(&refs, "<%d%s@x> ", i, strings.Repeat("&", 150))
			}
			var raw strings.Builder
			raw.WriteString("Subject: " + short + "\r\nTo: " + addr + "\r\nCc: " + addr + "\r\nReply-To: " + addr +
				"\r\nFrom: " + addr + "\r\nReferences: " + refs.String() + "\r\nIn-Reply-To: " + refs.String() +
				"\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\nContent-Type: text/plain; charset=utf-8\r\n\r\n" + long + "\r\n")
			for range 200 {
				raw.WriteString("--b\r\nContent-Type: application/" + strings.Repeat("x", 300) +
					"\r\nContent-Disposition: attachment; filename=\"" + strings.ReplaceAll(short, `"`, "") + "\"\r\n\r\nx\r\n")
			}
			p := mustRead(t, []byte(raw.String()))
			if !p.TextTruncated || p.Text == "" || len(p.Attachments) != maxAttachments || p.Parse.Status != StatusLimits {
				t.Errorf("truncated %v, %d attachments, %+v", p.TextTruncated, len(p.Attachments), p.Parse)
			}
		})
	}
}

func TestTheNewestReferencesAreKept(t *testing.T) {
	var refs strings.Builder
	for i := range 100 {
		fmt.Fprintf(&refs, "<%d@x>\r\n ", i)
	}
	p := mustRead(t, []byte("References: "+refs.String()+"\r\n\r\nx"))
	if len(p.References) != 64 || p.References[63] != "<99@x>" || p.References[0] != "<36@x>" {
		t.Errorf("%q", p.References)
	}
}

func TestTroubleWithReadingIsAnErrorNeverAVerdictOnTheMail(t *testing.T) {
	ctx := context.Background()
	broken := errors.New("disk gone")
	mail := "Subject: x\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n\r\nhello\r\n--b--\r\n"
	t.Run("open", func(t *testing.T) {
		_, err := Read(ctx, func() (io.ReadCloser, error) { return nil, broken }, -1, Limits{})
		if !errors.Is(err, broken) || fault.Permanent(err) {
			t.Error(err)
		}
	})
	for fails := 1; fails <= 2; fails++ {
		t.Run(fmt.Sprintf("in pass %d", fails), func(t *testing.T) {
			opened := 0
			_, err := Read(ctx, func() (io.ReadCloser, error) {
				if opened++; opened == fails {
					return io.NopCloser(io.MultiReader(strings.NewReader(mail[:60]), failing{broken})), nil
				}
				return io.NopCloser(strings.NewReader(mail)), nil
			}, -1, Limits{})
			if !errors.Is(err, broken) || fault.Permanent(err) {
				t.Error(err)
			}
		})
	}
	t.Run("fewer bytes than announced", func(t *testing.T) {
		_, err := Read(ctx, given([]byte(mail)), int64(len(mail))+1, Limits{})
		if fault.CodeOf(err) != fault.StoreCorrupt || fault.Permanent(err) {
			t.Error(err)
		}
	})
	t.Run("cancelled", func(t *testing.T) {
		ended, cancel := context.WithCancel(ctx)
		cancel()
		if _, err := Read(ended, given([]byte(mail)), -1, Limits{}); !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

func TestAMailBeyondALimitKeepsItsHeader(t *testing.T) {
	raw := []byte("Subject: x\r\nMessage-ID: <a@b>\r\n\r\n" + strings.Repeat("x", 1000))
	for _, size := range []int64{int64(len(raw)), -1} {
		p, err := Read(context.Background(), given(raw), size, Limits{Bytes: 100})
		if err != nil || p.Parse.Status != StatusLimits || p.Limit != "bytes" || p.Subject != "x" || p.MessageID != "<a@b>" {
			t.Errorf("%+v %q %v", p.Parse, p.Subject, err)
		}
	}
	p, err := Read(context.Background(), given(raw), -1, Limits{Time: time.Nanosecond})
	if err != nil || p.Limit != "time" || p.Subject != "x" {
		t.Errorf("%+v %q %v", p.Parse, p.Subject, err)
	}
}

func TestAMailThatTakesTooLongIsGivenUpInTime(t *testing.T) {
	// These delimiters are ones to enmime only, which takes ever longer for each.
	raw := []byte("Subject: slow\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n" +
		strings.Repeat("\rX--b \nY--b \n\nx\n", 1_000_000))
	start := time.Now()
	p, err := Read(context.Background(), given(raw), -1, Limits{Time: time.Second})
	if err != nil || p.Limit != "time" || p.Parse.Status != StatusLimits || p.Subject != "slow" {
		t.Errorf("%+v %q %v", p.Parse, p.Limit, err)
	}
	if d := time.Since(start); d > 20*time.Second {
		t.Errorf("took %v", d)
	}
}

func TestALargeAttachmentIsNotHeldManyTimes(t *testing.T) {
	raw := []byte("Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n\r\nhei\r\n--b\r\nContent-Type: application/pdf\r\n" +
		"Content-Transfer-Encoding: base64\r\n\r\n" + strings.Repeat(strings.Repeat("QUJD", 19)+"\r\n", 10<<20/57) + "--b--\r\n")
	var before, after runtime.MemStats // of the whole process, so the bound is generous: 1.6 times the mail is usual
	runtime.ReadMemStats(&before)
	p := mustRead(t, raw)
	runtime.ReadMemStats(&after)
	if len(p.Attachments) != 1 || p.Attachments[0].Size < 10_000_000 {
		t.Fatalf("%+v", p.Attachments)
	}
	if used := after.TotalAlloc - before.TotalAlloc; used > uint64(len(raw))*5 {
		t.Errorf("%d bytes for a mail of %d", used, len(raw))
	}
}

func FuzzRead(f *testing.F) {
	files, err := filepath.Glob("testdata/*.eml")
	if err != nil {
		f.Fatal(err)
	}
	for _, file := range files {
		raw, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		p := mustRead(t, raw)
		for _, a := range p.Attachments {
			again, _, ok, err := Part(context.Background(), given(raw), -1, a.Index, Limits{})
			if err != nil || !ok || again != a {
				t.Fatalf("part %d: %+v %v %v", a.Index, again, ok, err)
			}
		}
		html, ok, err := HTML(context.Background(), given(raw), -1, Limits{})
		if err != nil || !utf8.Valid(html) || ok != p.HasHTML {
			t.Fatalf("HTML %v %v", ok, err)
		}
	})
}

func benchmarkRead(b *testing.B, raw []byte) {
	b.SetBytes(int64(len(raw)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Read(context.Background(), given(raw), int64(len(raw)), Limits{}); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkReadText5KB(b *testing.B) {
	benchmarkRead(b, []byte("From: a@b\r\nSubject: =?utf-8?Q?=C3=A4?=\r\nContent-Type: text/plain; charset=utf-8\r\n\r\n"+
		strings.Repeat("Hei, tässä on tavallinen rivi tekstiä asiakkaalta.\r\n", 100)))
}

func BenchmarkReadAttachment5MB(b *testing.B) {
	line := strings.Repeat("QUJD", 19) + "\r\n"
	benchmarkRead(b, []byte("From: a@b\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n\r\nhei\r\n--b\r\n"+
		"Content-Type: application/pdf\r\nContent-Transfer-Encoding: base64\r\n\r\n"+strings.Repeat(line, 5<<20/57)+"--b--\r\n"))
}
