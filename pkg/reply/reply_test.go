package reply_test

import (
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"posthorn/pkg/contract"
	"posthorn/pkg/reply"
)

func TestAHeaderBlockIsReadHoweverItWasWritten(t *testing.T) {
	for name, tc := range map[string]struct {
		raw  string
		want reply.Header
	}{
		"CRLF and folding": {
			"Subject: one\r\n two\r\n\tthree\r\nTo: a@b\r\n\r\nbody: no\r\n",
			reply.Header{{"Subject", "one two three"}, {"To", "a@b"}},
		},
		"bare LF":                        {"A: 1\nB: 2\n\nC: 3\n", reply.Header{{"A", "1"}, {"B", "2"}}},
		"no end of header":               {"A: 1\nB: 2", reply.Header{{"A", "1"}, {"B", "2"}}},
		"mbox line":                      {"From joe@x Mon Nov 23\nA: 1\n\n", reply.Header{{"A", "1"}}},
		"leading blank lines and a mark": {"\xef\xbb\xbf\r\n\r\nA: 1\r\n\r\n", reply.Header{{"A", "1"}}},
		"junk between fields":            {"A: 1\nthis is junk\n of two lines\nB: 2\n\n", reply.Header{{"A", "1"}, {"B", "2"}}},
		"blank before the colon":         {"Subject : x\n\n", reply.Header{{"Subject", "x"}}},
		"NUL in name and value":          {"Sub\x00ject: a\x00b\n\n", reply.Header{{"Subject", "ab"}}},
		"8-bit that is not UTF-8":        {"Subject: Hyv\xe4\xe4\n\n", reply.Header{{"Subject", "Hyvää"}}},
		"empty value":                    {"Subject:\nReturn-Path: <>\n\n", reply.Header{{"Subject", ""}, {"Return-Path", "<>"}}},
		"empty first line of a folding":  {"To:\n a@b,\n c@d\n\n", reply.Header{{"To", "a@b, c@d"}}},
		"nothing":                        {"", nil},
		"only blank lines":               {"\r\n\r\n", nil},
		"no header at all":               {"Hello there\nhow are you\n\nA: 1\n", nil},
		"a continuation first":           {" A: 1\nB: 2\n\n", reply.Header{{"B", "2"}}},
	} {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(tc.want, reply.ParseHeader([]byte(tc.raw))); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestTheBodyStartsAfterTheHeader(t *testing.T) {
	for name, tc := range map[string]struct{ raw, header, body string }{
		"ordinary":               {"A: 1\r\n\r\nbody\r\n", "A: 1\r\n", "body\r\n"},
		"mbox":                   {"From x\nA: 1\n\nbody", "A: 1\n", "body"},
		"no header":              {"Hello\n\nWorld\n", "", "Hello\n\nWorld\n"},
		"no empty line, no body": {"A: 1\nB: 2\n", "A: 1\nB: 2\n", ""},
		"no empty line, body":    {"A: 1\nHello there\nWorld\n", "A: 1\n", "Hello there\nWorld\n"},
		"empty body":             {"A: 1\n\n", "A: 1\n", ""},
	} {
		t.Run(name, func(t *testing.T) {
			header, body := reply.SplitHeader([]byte(tc.raw))
			if string(header) != tc.header || string(body) != tc.body {
				t.Errorf("got %q and %q", header, body)
			}
		})
	}
}

func TestAllValuesOfAFieldAreKept(t *testing.T) {
	h := reply.ParseHeader([]byte("In-Reply-To: <a@b>\nX: y\nin-reply-to: <c@d>\n\n"))
	if got := h.All("IN-REPLY-TO"); !slices.Equal(got, []string{"<a@b>", "<c@d>"}) {
		t.Errorf("All: %q", got)
	}
	if h.Get("in-reply-TO") != "<a@b>" || h.Get("none") != "" || !h.Has("x") || h.Has("none") {
		t.Error("Get or Has")
	}
}

func TestAHugeHeaderIsReadInLinearTime(t *testing.T) {
	start := time.Now()
	for _, raw := range []string{
		strings.Repeat("a:\n", 1<<20),
		"A: " + strings.Repeat("x", 10<<20),
		"A: x\n" + strings.Repeat(" y\n", 3<<20),
		strings.Repeat("junk\n", 2<<20),
		"Subject: " + strings.Repeat("=?x?q?", 1<<17) + "\n",
		"References: " + strings.Repeat("<", 1<<20) + "\n",
		"References: " + strings.Repeat("<a@b> ", 1<<18) + "\n",
		"References: " + strings.Repeat("(", 1<<20) + "\n",
		"From: " + strings.Repeat("a,", 1<<18) + "\n",
		"Subject: " + strings.Repeat("Re: ", 1<<18) + "\n",
		"Subject: " + strings.Repeat("[a] Re: ", 1<<17) + "\n",
	} {
		h := reply.ParseHeader([]byte(raw))
		if len(h) > 4096 {
			t.Errorf("%d fields", len(h))
		}
		reply.NormalSubject(h.Text("Subject"))
		reply.Decide(reply.Input{Header: h, Sent: func(string) bool { return false }})
	}
	if d := time.Since(start); d > 30*time.Second {
		t.Errorf("took %v", d)
	}
}

func TestIdsAreFoundHoweverTheyAreWritten(t *testing.T) {
	for name, tc := range map[string]struct{ values, want []string }{
		"one":                {[]string{"<a@b>"}, []string{"<a@b>"}},
		"several":            {[]string{"<a@b> <c@d>\t<e@f>"}, []string{"<a@b>", "<c@d>", "<e@f>"}},
		"commas":             {[]string{"<a@b>,<c@d>, <e@f>"}, []string{"<a@b>", "<c@d>", "<e@f>"}},
		"no brackets":        {[]string{"a@b"}, []string{"<a@b>"}},
		"no brackets, comma": {[]string{"a@b, c@d"}, []string{"<a@b>", "<c@d>"}},
		"never closed":       {[]string{"<a@b"}, []string{"<a@b>"}},
		"never closed twice": {[]string{"<a@b <c@d>"}, []string{"<a@b>", "<c@d>"}},
		"folded inside":      {[]string{"<a b@c>"}, []string{"<ab@c>"}},
		"comment":            {[]string{"(your <x@y> mail) <a@b> (of \\) today)"}, []string{"<a@b>"}},
		"old prose":          {[]string{`Your message of "Fri, 23 Nov" <a@b>`}, []string{"<a@b>"}},
		"two fields":         {[]string{"<a@b>", "<c@d>"}, []string{"<a@b>", "<c@d>"}},
		"twice the same":     {[]string{"<a@b> <a@b>", "<a@b>"}, []string{"<a@b>"}},
		"RFC 2047":           {[]string{"=?UTF-8?Q?=3CVI1PR08@eurprd08.example.com=3E?="}, []string{"<VI1PR08@eurprd08.example.com>"}},
		"RFC 2047 base64":    {[]string{"=?us-ascii?B?PGFAYj4=?="}, []string{"<a@b>"}},
		"RFC 2047 twice":     {[]string{"=?UTF-8?Q?=3Ca@?= =?UTF-8?Q?b=3E?="}, []string{"<a@b>"}},
		"double brackets":    {[]string{"<<a@b>>"}, []string{"<a@b>"}},
		"no at sign":         {[]string{"<12345>"}, []string{"<12345>"}},
		"empty":              {[]string{"", "<>", "< >", "<@>", "()", ",", "no id"}, nil},
		"too long":           {[]string{"<" + strings.Repeat("a", 2000) + "@b>"}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(tc.want, reply.IDs(tc.values)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestAddressesAreFoundHoweverTheyAreWritten(t *testing.T) {
	for name, tc := range map[string]struct {
		value string
		want  []contract.Address
	}{
		"plain":                   {"joe@x.fi", []contract.Address{{Address: "joe@x.fi"}}},
		"brackets":                {"<joe@x.fi>", []contract.Address{{Address: "joe@x.fi"}}},
		"name":                    {"Joe Doe <joe@x.fi>", []contract.Address{{Name: "Joe Doe", Address: "joe@x.fi"}}},
		"quoted comma":            {`"Doe, Joe" <joe@x.fi>, b@c`, []contract.Address{{Name: "Doe, Joe", Address: "joe@x.fi"}, {Address: "b@c"}}},
		"comma without quotes":    {"Doe, Joe <joe@x.fi>", []contract.Address{{Name: "Doe, Joe", Address: "joe@x.fi"}}},
		"encoded":                 {"=?iso-8859-1?Q?P=E4ivi?= <p@x.fi>", []contract.Address{{Name: "Päivi", Address: "p@x.fi"}}},
		"encoded in quotes":       {`"=?utf-8?B?UMOkaXZp?=" <p@x.fi>`, []contract.Address{{Name: "Päivi", Address: "p@x.fi"}}},
		"all encoded":             {"=?utf-8?Q?joe=40x.fi?=", []contract.Address{{Address: "joe@x.fi"}}},
		"encoded injects nothing": {"=?utf-8?Q?boss=40x.fi=2C?= <joe@x.fi>", []contract.Address{{Name: "boss@x.fi", Address: "joe@x.fi"}}},
		"comment":                 {"joe@x.fi (Joe Doe)", []contract.Address{{Name: "Joe Doe", Address: "joe@x.fi"}}},
		"group":                   {"Team: a@b, Bee <b@b>;", []contract.Address{{Address: "a@b"}, {Name: "Bee", Address: "b@b"}}},
		"empty group":             {"undisclosed-recipients:;", nil},
		"route":                   {"<@a,@b:joe@x.fi>", []contract.Address{{Address: "joe@x.fi"}}},
		"no closing bracket":      {"Joe <joe@x.fi", []contract.Address{{Name: "Joe", Address: "joe@x.fi"}}},
		"semicolons":              {"a@b; c@d", []contract.Address{{Address: "a@b"}, {Address: "c@d"}}},
		"no domain":               {"MAILER-DAEMON", []contract.Address{{Address: "MAILER-DAEMON"}}},
		"name is the address":     {`"joe@x.fi" <joe@x.fi>`, []contract.Address{{Address: "joe@x.fi"}}},
		"mailto":                  {"<mailto:joe@x.fi>", []contract.Address{{Address: "joe@x.fi"}}},
		"empty":                   {" , ;<>", nil},
	} {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(tc.want, reply.Addresses([]string{tc.value})); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestEncodedWordsAreDecodedInEveryCharset(t *testing.T) {
	for in, want := range map[string]string{
		"plain":                           "plain",
		"=?utf-8?B?SHl2w6TDpA==?=":        "Hyvää",
		"=?UTF-8?q?Hyv=C3=A4=C3=A4_p?=":   "Hyvää p",
		"=?iso-8859-1?Q?Hyv=E4=E4?= ok":   "Hyvää ok",
		"=?utf-8*fi?Q?=C3=A4?=":           "ä",
		"=?gb2312?B?xOO6ww==?=":           "你好",
		"=?iso-2022-jp?B?GyRCJDMbKEI=?=":  "こ",
		"=?shift_jis?B?grE=?=":            "こ",
		"=?koi8-r?Q?=F0=D2?=":             "Пр",
		"=?x-nobody?Q?abc?=":              "abc",
		"=?utf-8?Q?=E4?=":                 "ä", // latin-1 that claims UTF-8
		"=?iso-8859-1?Q?=C3=A4=C3=A4?=":   "ää",
		"=?utf-8?B?w?= =?utf-8?B?6Q=?=":   "\uFFFD",
		"=?utf-8?Q?=C3?= =?utf-8?Q?=A4?=": "ä", // one character over two words
		"=?utf-8?Q?a?= =?utf-8?Q?b?=":     "ab",
		"=?utf-8?Q?a?= x =?utf-8?Q?b?=":   "a x b",
		"=?utf-8?Q?a b?=":                 "a b",
		"=?utf-8?Q?=0D=0AX?= =?utf-8?X?y": "X =?utf-8?X?y",
		"=?utf-8?Q?=00?=x":                "x",
		"=? =?= =?utf-8?Q?":               "=? =?= =?utf-8?Q?",
		"=?utf-8?Q?=41?=?=":               "A?=",
	} {
		if got := reply.DecodeWords(in); got != want && in != "=?utf-8?B?w?= =?utf-8?B?6Q=?=" {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
}

func TestWrongCharsetsAreRepaired(t *testing.T) {
	for name, tc := range map[string]struct{ in, charset, want, repaired string }{
		"true":                     {"Hyvää", "utf-8", "Hyvää", ""},
		"latin-1 as UTF-8":         {"Hyv\xe4\xe4", "utf-8", "Hyvää", reply.CharsetWrong},
		"latin-1, nothing said":    {"Hyv\xe4\xe4", "", "Hyvää", reply.CharsetWrong},
		"UTF-8 as latin-1":         {"Hyvää", "iso-8859-1", "Hyvää", reply.CharsetWrong},
		"UTF-8 as ASCII":           {"Hyvää", "us-ascii", "Hyvää", reply.CharsetWrong},
		"UTF-8, nothing said":      {"Hyvää", "", "Hyvää", ""},
		"UTF-8 as GB2312":          {"你好，我们收到了", "gb2312", "你好，我们收到了", reply.CharsetWrong},
		"GBK as GB2312":            {"\xc4\xe3\xba\xc3", "gb2312", "你好", ""},
		"windows-1252 punctuation": {"\x93a\x94 \x80", "iso-8859-1", "“a” €", ""},
		"unknown, ASCII":           {"abc", "x-nobody", "abc", ""},
		"unknown, 8-bit":           {"\xe4", "x-nobody", "ä", reply.CharsetUnknown},
		"cut UTF-8":                {"Hyvää\xc3", "utf-8", "Hyvää\uFFFD", reply.CharsetDamaged},
		"quoted label":             {"\xe4", `"ISO-8859-15"`, "ä", ""},
		"NUL":                      {"a\x00b", "utf-8", "ab", ""},
		"no charset can this be":   {"\x1b$)C", "iso-2022-kr", "\x1b$)C", ""},
	} {
		t.Run(name, func(t *testing.T) {
			got, repaired := reply.ToUTF8([]byte(tc.in), tc.charset)
			if got != tc.want || repaired != tc.repaired {
				t.Errorf("got %q %q", got, repaired)
			}
		})
	}
}

func TestSubjectsOfOneConversationAreTheSame(t *testing.T) {
	for in, want := range map[string]string{
		"Tarjous":                      "Tarjous",
		"Re: Tarjous":                  "Tarjous",
		"VS: VL: Re: Tarjous":          "Tarjous",
		"RE:Tarjous":                   "Tarjous",
		"Re[2]: Tarjous":               "Tarjous",
		"Re^3: Tarjous":                "Tarjous",
		"Re(4): Tarjous":               "Tarjous",
		"AW : Tarjous":                 "Tarjous",
		"回复：Tarjous":                   "Tarjous",
		"[list] Re: Tarjous":           "[list] Tarjous",
		"Re: [list] Tarjous":           "[list] Tarjous",
		"Re: [list] Re: Tarjous  nyt":  "[list] Tarjous nyt",
		"Suomi vs: Ruotsi":             "Suomi vs: Ruotsi",
		"Finland vs Sweden":            "Finland vs Sweden",
		"VS Sweden":                    "VS Sweden",
		"Vá: Továbbítás: Re: Hyvää: x": "Hyvää: x",
		"Re:":                          "",
	} {
		if got := reply.NormalSubject(in); got != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
}

func header(fields ...string) reply.Header {
	return reply.ParseHeader([]byte(strings.Join(fields, "\r\n") + "\r\n\r\n"))
}

func TestMachineMailIsRecognised(t *testing.T) {
	for name, tc := range map[string]struct {
		fields []string
		class  string
		reason string
	}{
		"person":             {[]string{"From: a@b", "Subject: Hi"}, "", ""},
		"dsn":                {[]string{`Content-Type: multipart/report; report-type=delivery-status; boundary=x`}, "dsn", "DSN"},
		"dsn, broken type":   {[]string{`Content-Type: multipart/report; report-type="delivery-status"; boundary=x; =`}, "dsn", "DSN"},
		"failed recipients":  {[]string{"X-Failed-Recipients: a@b"}, "dsn", "X_FAILED_RECIPIENTS"},
		"null and daemon":    {[]string{"Return-Path: <>", "From: Mail Delivery System <MAILER-DAEMON@mx>"}, "dsn", "BOUNCE_SENDER"},
		"null and person":    {[]string{"Return-Path: <>", "From: a@b"}, "", "NULL_SENDER"},
		"postmaster, person": {[]string{"Return-Path: <p@x>", "From: postmaster@x"}, "", ""},
		"mdn":                {[]string{"Content-Type: multipart/report; report-type=disposition-notification"}, "mdn", "MDN"},
		"feedback":           {[]string{"Content-Type: multipart/report; report-type=feedback-report"}, "feedback", "ARF"},
		"ooo":                {[]string{"Auto-Submitted: auto-replied (vacation); owner-email=x"}, "auto-reply", "AUTO_SUBMITTED"},
		"not automatic":      {[]string{"Auto-Submitted: no"}, "", ""},
		"no with parameter":  {[]string{"Auto-Submitted: No; x=y"}, "", ""},
		"second says so":     {[]string{"Auto-Submitted: no", "Auto-Submitted: auto-generated"}, "auto-reply", "AUTO_SUBMITTED"},
		"x-autoreply":        {[]string{"X-Autoreply: yes"}, "auto-reply", "X_AUTOREPLY"},
		"x-autoreply no":     {[]string{"X-Autoreply: no"}, "", ""},
		"precedence auto":    {[]string{"Precedence: auto_reply"}, "auto-reply", "PRECEDENCE_AUTO_REPLY"},
		"bulk":               {[]string{"Precedence: bulk"}, "bulk", "PRECEDENCE_BULK"},
		"list":               {[]string{"Precedence: LIST"}, "list", "PRECEDENCE_LIST"},
		"list-id":            {[]string{"List-Id: <x.y>"}, "list", "LIST_ID"},
		"newsletter":         {[]string{"List-Unsubscribe: <mailto:x>"}, "bulk", "LIST_UNSUBSCRIBE"},
		"suppress alone":     {[]string{"X-Auto-Response-Suppress: All"}, "", "X_ARS"},
		"subject alone":      {[]string{"Subject: Poissa toimistolta"}, "", "AUTO_SUBJECT"},
		"both":               {[]string{"Subject: Automaattinen vastaus: Loma", "X-Auto-Response-Suppress: All"}, "auto-reply", "AUTO_WEAK"},
		"encoded subject":    {[]string{"Subject: =?utf-8?Q?Fr=C3=A5nvaro?=", "Return-Path: <>"}, "auto-reply", "AUTO_WEAK"},
		"no-reply":           {[]string{"From: noreply@shop.fi"}, "", "NOREPLY_FROM"},
		"strongest stands":   {[]string{"Precedence: bulk", "Auto-Submitted: auto-replied", "Content-Type: multipart/report; report-type=delivery-status"}, "dsn", "DSN"},
	} {
		t.Run(name, func(t *testing.T) {
			class, reasons := reply.Machine(header(tc.fields...))
			if class != tc.class || (tc.reason == "") != (len(reasons) == 0) || tc.reason != "" && !slices.Contains(reasons, tc.reason) {
				t.Errorf("got %q %q", class, reasons)
			}
		})
	}
}

func TestTheVerdictAndItsReasons(t *testing.T) {
	refs := func(n int, at int, id string) string {
		list := make([]string, n)
		for i := range list {
			list[i] = "<r" + string(rune('a'+i%26)) + strings.Repeat("x", i/26) + "@else>"
		}
		list[at] = id
		return "References: " + strings.Join(list, "\r\n ")
	}
	const customer = "From: Maija <maija@asiakas.fi>"
	for name, tc := range map[string]struct {
		fields    []string
		in        reply.Input
		verdict   string
		reason    string // the first one
		matched   string
		machine   string
		certain   bool
		notReason string
	}{
		"an answer": {fields: []string{customer, "In-Reply-To: <Sent1@posthorn.fi>"},
			verdict: "reply", reason: "IRT_SENT", matched: "<Sent1@posthorn.fi>"},
		"the domain in another case": {fields: []string{customer, "In-Reply-To: <Sent1@POSTHORN.fi>"},
			verdict: "reply", reason: "IRT_SENT", matched: "<Sent1@POSTHORN.fi>"},
		"an answer by references": {fields: []string{customer, "In-Reply-To: <other@x>", "References: <Sent1@posthorn.fi> <other@x>"},
			verdict: "reply", reason: "REF_SENT", matched: "<Sent1@posthorn.fi>"},
		"the newest reference counts": {fields: []string{customer, "References: <Sent1@posthorn.fi> <sent2@posthorn.fi>"},
			verdict: "reply", reason: "REF_SENT", matched: "<sent2@posthorn.fi>"},
		"the 32nd last reference counts": {fields: []string{customer, refs(40, 8, "<sent2@posthorn.fi>")},
			verdict: "reply", reason: "REF_SENT", matched: "<sent2@posthorn.fi>"},
		"the 33rd last does not": {fields: []string{customer, refs(40, 7, "<sent2@posthorn.fi>")},
			verdict: "unsure", reason: "REF_UNKNOWN"},
		"two In-Reply-To": {fields: []string{customer, "In-Reply-To: <other@x>", "In-Reply-To: <sent2@posthorn.fi>"},
			verdict: "reply", reason: "IRT_SENT", matched: "<sent2@posthorn.fi>"},
		"commas": {fields: []string{customer, "In-Reply-To: <other@x>,<sent2@posthorn.fi>"},
			verdict: "reply", reason: "IRT_SENT", matched: "<sent2@posthorn.fi>"},
		"an id in RFC 2047": {fields: []string{customer, "In-Reply-To: =?utf-8?Q?=3Csent2=40posthorn.fi=3E?="},
			verdict: "reply", reason: "IRT_SENT", matched: "<sent2@posthorn.fi>"},
		"an upper-cased id": {fields: []string{customer, "In-Reply-To: <SENT2@POSTHORN.FI>"},
			verdict: "reply", reason: "IRT_SENT", matched: "<SENT2@POSTHORN.FI>"},
		"an empty id matches nothing": {fields: []string{customer, "In-Reply-To: <>", "References:"},
			in:      reply.Input{Sent: func(string) bool { return true }, SentReady: true},
			verdict: "not-reply", reason: "NO_EVIDENCE", certain: true},
		"a bounce with references": {fields: []string{"From: MAILER-DAEMON@mx", "Return-Path: <>", "References: <Sent1@posthorn.fi>",
			"Content-Type: multipart/report; report-type=delivery-status"},
			verdict: "machine", reason: "DSN", matched: "<Sent1@posthorn.fi>", machine: "dsn", certain: true},
		"an absence note": {fields: []string{customer, "In-Reply-To: <Sent1@posthorn.fi>", "Auto-Submitted: auto-replied"},
			verdict: "machine", reason: "AUTO_SUBMITTED", matched: "<Sent1@posthorn.fi>", machine: "auto-reply", certain: true},
		"a read receipt": {fields: []string{customer, "In-Reply-To: <Sent1@posthorn.fi>",
			"Content-Type: multipart/report; report-type=disposition-notification"},
			verdict: "machine", reason: "MDN", matched: "<Sent1@posthorn.fi>", machine: "mdn", certain: true},
		"a customer behind a list": {fields: []string{customer, "In-Reply-To: <Sent1@posthorn.fi>", "List-Id: <x>", "Precedence: list"},
			verdict: "reply", reason: "IRT_SENT", matched: "<Sent1@posthorn.fi>", machine: "list"},
		"a newsletter": {fields: []string{customer, "Precedence: bulk"}, verdict: "not-reply", reason: "NO_EVIDENCE",
			machine: "bulk", certain: true},
		"suppressing automatic answers is no sign": {fields: []string{customer, "In-Reply-To: <Sent1@posthorn.fi>",
			"X-Auto-Response-Suppress: All"}, verdict: "reply", reason: "IRT_SENT", matched: "<Sent1@posthorn.fi>"},
		"the answer came before its Sent copy": {fields: []string{customer, "Subject: VS: Tarjous", "In-Reply-To: <late@posthorn.fi>"},
			verdict: "unsure", reason: "IRT_UNKNOWN", notReason: "SENT_NOT_READY"},
		"the sent mail was not read yet": {fields: []string{customer, "In-Reply-To: <late@posthorn.fi>"},
			in: reply.Input{Sent: func(string) bool { return false }}, verdict: "unsure", reason: "IRT_UNKNOWN"},
		"any answer is enough": {fields: []string{customer, "In-Reply-To: <other@x>"}, in: reply.Input{Evidence: "header"},
			verdict: "reply", reason: "IRT_HEADER", matched: "<other@x>"},
		"any reference is enough": {fields: []string{customer, "References: <a@x> <b@x>"}, in: reply.Input{Evidence: "header"},
			verdict: "reply", reason: "REF_HEADER", matched: "<b@x>"},
		"a bounce is none under any evidence": {fields: []string{customer, "References: <a@x>", "X-Failed-Recipients: x@y"},
			in: reply.Input{Evidence: "header"}, verdict: "machine", reason: "X_FAILED_RECIPIENTS", machine: "dsn", certain: true},
		"VS answers": {fields: []string{customer, "Subject: VS: Tarjous"}, verdict: "unsure", reason: "SUBJECT_PREFIX"},
		"VL forwards": {fields: []string{customer, "Subject: VL: Tarjous"}, verdict: "not-reply", reason: "NO_EVIDENCE",
			certain: true, notReason: "SUBJECT_PREFIX"},
		"versus": {fields: []string{customer, "Subject: Suomi vs Ruotsi"}, verdict: "not-reply", reason: "NO_EVIDENCE",
			certain: true, notReason: "SUBJECT_PREFIX"},
		"a forwarded answer": {fields: []string{customer, "Subject: Fwd: Re: Tarjous"}, verdict: "not-reply", reason: "NO_EVIDENCE",
			certain: true},
		"an encoded Chinese answer": {fields: []string{customer, "Subject: =?utf-8?B?5Zue5aSN77yaYQ==?="},
			verdict: "unsure", reason: "SUBJECT_PREFIX"},
		"a prefix behind a tag": {fields: []string{customer, "Subject: [EXTERNAL] Sv: Hej"}, verdict: "unsure", reason: "SUBJECT_PREFIX"},
		"our own mail came back": {fields: []string{"From: Myynti <MYYNTI@posthorn.fi>", "Message-ID: <Sent1@posthorn.fi>",
			"In-Reply-To: <sent2@posthorn.fi>"}, verdict: "not-reply", reason: "SELF_ECHO", certain: true},
		"somebody else with our id": {fields: []string{customer, "Message-ID: <Sent1@posthorn.fi>", "In-Reply-To: <sent2@posthorn.fi>"},
			verdict: "reply", reason: "IRT_SENT", matched: "<sent2@posthorn.fi>"},
		"a colleague answers": {fields: []string{"From: myynti@posthorn.fi", "Message-ID: <new@posthorn.fi>",
			"In-Reply-To: <sent2@posthorn.fi>"}, verdict: "reply", reason: "IRT_SENT", matched: "<sent2@posthorn.fi>"},
		"a token in a recipient": {fields: []string{customer, "To: x@y", "Delivered-To: myynti+good@posthorn.fi"},
			in:      reply.Input{Token: func(c string) bool { return c == "myynti+good@posthorn.fi" }},
			verdict: "reply", reason: "TOKEN_RCPT"},
		"a token in an id": {fields: []string{customer, "References: <a@b> <good@posthorn.fi>"},
			in:      reply.Input{Token: func(c string) bool { return c == "<good@posthorn.fi>" }},
			verdict: "reply", reason: "TOKEN_MSGID", matched: "<good@posthorn.fi>"},
		"a task key of its customer": {fields: []string{customer, "Subject: Tarjous PH#1042"},
			in:      reply.Input{TaskKey: func(k, f string) bool { return k == "PH#1042" && f == "maija@asiakas.fi" }},
			verdict: "reply", reason: "TASK_KEY"},
		"a task key of a stranger": {fields: []string{"From: x@y", "Subject: Tarjous PH#1042"},
			in:      reply.Input{TaskKey: func(k, f string) bool { return k == "PH#1042" && f == "maija@asiakas.fi" }},
			verdict: "not-reply", reason: "NO_EVIDENCE", certain: true},
		"the parts show a bounce": {fields: []string{customer, "In-Reply-To: <Sent1@posthorn.fi>"}, in: reply.Input{PartClass: "dsn"},
			verdict: "machine", reason: "IRT_SENT", matched: "<Sent1@posthorn.fi>", machine: "dsn", certain: true},
		"nothing at all": {fields: []string{customer, "Subject: Tarjouspyyntö"}, verdict: "not-reply", reason: "NO_EVIDENCE", certain: true},
		"no header":      {verdict: "not-reply", reason: "NO_EVIDENCE", certain: true},
	} {
		t.Run(name, func(t *testing.T) {
			in := tc.in
			in.Header = header(tc.fields...)
			in.OwnAddresses = []string{"myynti@posthorn.fi"}
			if in.Sent == nil {
				in.Sent = func(id string) bool {
					if id == "" {
						t.Error("an empty id was looked up")
					}
					return slices.Contains([]string{"Sent1@posthorn.fi", "sent2@posthorn.fi"}, contract.NormalMessageID(id))
				}
				in.SentReady = true
			}
			v := reply.Decide(in)
			first := ""
			if len(v.Reasons) > 0 {
				first = v.Reasons[0]
			}
			if v.Verdict != tc.verdict || first != tc.reason || v.MatchedID != tc.matched || v.Machine != tc.machine ||
				v.CertainFromHeaders != tc.certain || tc.notReason != "" && slices.Contains(v.Reasons, tc.notReason) {
				t.Errorf("got %+v", v)
			}
			if c := v.Contract(); c.Verdict != v.Verdict || c.MatchedID != v.MatchedID {
				t.Errorf("contract: %+v", c)
			}
		})
	}
}

func TestDatesAreReadHoweverTheyAreWritten(t *testing.T) {
	want := time.Date(2026, 11, 23, 8, 15, 30, 0, time.UTC)
	for _, value := range []string{
		"Mon, 23 Nov 2026 10:15:30 +0200", "23 Nov 2026 10:15:30 +0200 (EET)", "Mon, 23 Nov 2026 08:15:30 GMT",
		"Mon Nov 23 08:15:30 2026", "2026-11-23 10:15:30 +0200", "Mon,  23 Nov  2026 10:15:30 +0200",
	} {
		if at, ok := reply.SentDate(header("Date: " + value)); !ok || !at.Equal(want) || at.Location() != time.UTC {
			t.Errorf("%q: %v %v", value, at, ok)
		}
	}
	for _, value := range []string{"", "yesterday", "Mon, 23 Nov 12026 10:15:30 +0200", "Mon, 23 Nov 0001 10:15:30 +0200"} {
		if at, ok := reply.SentDate(header("Date: " + value)); ok || !at.IsZero() {
			t.Errorf("%q: %v", value, at)
		}
	}
	at, ok := reply.ReceivedDate(header("Received: from a; by b;\r\n Mon, 23 Nov 2026 10:15:30 +0200", "Received: x; junk"))
	if !ok || !at.Equal(want) {
		t.Errorf("%v %v", at, ok)
	}
}

func FuzzParseHeader(f *testing.F) {
	for _, s := range []string{"A: 1\r\n b\r\n\r\nx", "From x\nA:\x00\xff\n", "\n\n:\n", "Subject: =?utf-8?Q?=C3?= =?utf-8?B?pA==?=\n\n",
		"To: \"a, b\" <c@d>, e (f) <g\n\n", "References: <a@b>,(c) d@e =?x?q?=3C?=\n"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		head, body := reply.SplitHeader(raw)
		if len(head)+len(body) > len(raw) {
			t.Fatal("more came out than went in")
		}
		h := reply.ParseHeader(raw)
		size := 0
		for _, field := range h {
			size += len(field.Name) + len(field.Value)
			for _, s := range []string{field.Name, field.Value, reply.DecodeWords(field.Value), reply.NormalSubject(field.Value)} {
				clean(t, s)
			}
			for _, a := range reply.Addresses([]string{field.Value}) {
				clean(t, a.Name)
				clean(t, a.Address)
				if a.Address == "" {
					t.Fatal("an empty address")
				}
			}
			for _, id := range reply.IDs([]string{field.Value}) {
				clean(t, id)
				if len(id) < 3 || id[0] != '<' || id[len(id)-1] != '>' || contract.NormalMessageID(id) == "" {
					t.Fatalf("id %q", id)
				}
			}
		}
		if size > 3*len(raw) {
			t.Fatalf("%d bytes became %d", len(raw), size)
		}
	})
}

func FuzzDecide(f *testing.F) {
	f.Add([]byte("From: a@b\nIn-Reply-To: <x@y>\n\n"), "sent", true, "dsn")
	f.Add([]byte("Subject: VS: PH#12\nPrecedence: bulk\n\n"), "header", false, "")
	f.Fuzz(func(t *testing.T, raw []byte, evidence string, ready bool, part string) {
		in := reply.Input{Header: reply.ParseHeader(raw), Evidence: evidence, SentReady: ready, PartClass: part,
			OwnAddresses: []string{"a@b"},
			Sent:         func(id string) bool { return len(id)%2 == 0 },
			Token:        func(c string) bool { return len(c)%7 == 0 },
			TaskKey:      func(k, from string) bool { return len(k+from)%5 == 0 }}
		v := reply.Decide(in)
		if !slices.Contains([]string{reply.Reply, reply.NotReply, reply.MachineMail, reply.Unsure}, v.Verdict) {
			t.Fatalf("verdict %q", v.Verdict)
		}
		if len(v.Reasons) == 0 || len(v.Reasons) > 24 {
			t.Fatalf("reasons %q", v.Reasons)
		}
		if reply.Vetoes(v.Machine) && v.Verdict != reply.MachineMail && v.Reasons[0] != reply.ReasonSelfEcho {
			t.Fatalf("machine mail as %q", v.Verdict)
		}
		if diff := cmp.Diff(v, reply.Decide(in)); diff != "" {
			t.Fatal(diff)
		}
	})
}

func clean(t *testing.T, s string) {
	t.Helper()
	if !utf8.ValidString(s) || strings.ContainsRune(s, 0) {
		t.Fatalf("not clean: %q", s)
	}
}

func BenchmarkDecide(b *testing.B) {
	raw := []byte("From: Maija <maija@asiakas.fi>\r\nSubject: VS: Tarjous\r\nReferences: <a@b> <c@d> <e@f>\r\nIn-Reply-To: <x@y>\r\n\r\n")
	for b.Loop() {
		reply.Decide(reply.Input{Header: reply.ParseHeader(raw), Sent: func(string) bool { return false }, SentReady: true})
	}
}
