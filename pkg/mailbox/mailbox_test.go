package mailbox

import (
	"net/netip"
	"testing"
)

func TestTheFingerprintIsIndifferentToFolding(t *testing.T) {
	one := Fingerprint([]byte("Message-ID: <a@b>\r\nSubject: a long\r\n\tsubject line \r\nX: 1\r\n\r\nSubject: body\r\n"))
	for name, header := range map[string]string{
		"unfolded":       "Message-ID: <a@b>\r\nSubject: a long subject line\r\nX: 2\r\n\r\n",
		"line feeds":     "Message-ID: <a@b>\nSubject:  a  long subject line\n",
		"another order":  "subject: a long subject line\r\nmessage-id: <a@b>\r\n",
		"no empty line":  "Message-ID: <a@b>\r\nSubject: a long subject line",
		"folded anew":    "Message-ID:\r\n <a@b>\r\nSubject: a\r\n long subject\r\n line\r\n",
		"another X-line": "X: 3\r\nMessage-ID: <a@b>\r\nSubject: a long subject line\r\n",
	} {
		if Fingerprint([]byte(header)) != one {
			t.Errorf("%s: another fingerprint", name)
		}
	}
	for name, header := range map[string]string{
		"another subject": "Message-ID: <a@b>\r\nSubject: a long subject",
		"another id":      "Message-ID: <c@b>\r\nSubject: a long subject line",
		"nothing":         "",
	} {
		if Fingerprint([]byte(header)) == one {
			t.Errorf("%s: the same fingerprint", name)
		}
	}
	if Fingerprint([]byte("X: 1\r\n")) == Fingerprint([]byte("X: 2\r\n")) {
		t.Error("without identifying fields the whole header counts")
	}
}

func TestTheNetworkPolicyRulesAddresses(t *testing.T) {
	for addr, want := range map[string]struct{ private, public bool }{
		"127.0.0.1":              {true, false},
		"::1":                    {true, false},
		"10.1.2.3":               {true, false},
		"192.168.1.1":            {true, false},
		"fd00::1":                {true, false},
		"::ffff:10.0.0.1":        {true, false},
		"1.1.1.1":                {true, true},
		"2606:4700:4700::1111":   {true, true},
		"169.254.169.254":        {false, false},
		"::ffff:169.254.169.254": {false, false},
		"64:ff9b::a9fe:a9fe":     {false, false},
		"fe80::1":                {false, false},
		"fe80::1%eth0":           {false, false},
		"100.100.100.200":        {false, false},
		"fd00:ec2::254":          {false, false},
		"0.0.0.0":                {false, false},
		"::":                     {false, false},
		"224.0.0.1":              {false, false},
		"255.255.255.255":        {false, false},
	} {
		a := netip.MustParseAddr(addr)
		if got := PrivateOK.permits(a) == nil; got != want.private {
			t.Errorf("%s: private-ok permits it: %v", addr, got)
		}
		if got := PublicOnly.permits(a) == nil; got != want.public {
			t.Errorf("%s: public-only permits it: %v", addr, got)
		}
	}
}

func TestAnswersAreRepairedOrDropped(t *testing.T) {
	for in, want := range map[string]string{
		"* XYZZY":                                      "",
		"* VANISHED 1:2":                               "",
		"*  OK two blanks":                             "* OK two blanks",
		"* LIST () \"/\" R&D":                          "",
		"* LIST () \"/\" \"a & b\"":                    "",
		"* LIST () \"/\" \"R&-D\"":                     "* LIST () \"/\" \"R&-D\"",
		"* LIST (\\Sent) \"/\" &ZeVnLIqe-":             "* LIST (\\Sent) \"/\" &ZeVnLIqe-",
		"* LIST () NIL INBOX":                          "* LIST () NIL INBOX",
		"* LIST () \"/\" \"\xe4\"":                     "",
		"* LIST () \"/\" \"ä\"":                        "* LIST () \"/\" \"ä\"",
		"* LIST (\\[x) \"/\" a":                        "",
		"* FLAGS (a]b)":                                "",
		"* 3 FETCH (UID 1 FLAGS (\\Seen [x] $a))":      "* 3 FETCH (UID 1 FLAGS (\\Seen))",
		"* OK [PERMANENTFLAGS (\\Deleted [x] \\*)] ok": "* OK [PERMANENTFLAGS (\\Deleted \\*)] permitted",
		"* OK [UIDVALIDITY 12] ok":                     "* OK [UIDVALIDITY 12] ok",
		"* OK [UIDVALIDITY 99999999999] ok":            "* OK unreadable",
		"* OK [UIDNEXT] ok":                            "* OK unreadable",
		"* OK [HIGHESTMODSEQ x] ok":                    "* OK noted",
		"* OK [":                                       "* OK unreadable",
		"* 5 EXISTS":                                   "* 5 EXISTS",
		"* SEARCH 1 2 3":                               "* SEARCH 1 2 3",
		"* 1 FETCH (INTERNALDATE \"x\" UID 3)":         "* 1 FETCH (INTERNALDATE \"01-Jan-1970 00:00:00 +0000\" UID 3)",
		"* 1 FETCH (INTERNALDATE NIL UID 3)":           "* 1 FETCH (INTERNALDATE \"01-Jan-1970 00:00:00 +0000\" UID 3)",
		"* 1 FETCH (INTERNALDATE \" 1-Feb-2026 01:02:03 +0000\")": "* 1 FETCH (INTERNALDATE \" 1-Feb-2026 01:02:03 +0000\")",
		"T1 OK [READ-WRITE] done":                                 "T1 OK [READ-WRITE] done",
	} {
		if want != "" {
			want += "\r\n"
		}
		l := &imapLines{}
		if got := string(l.repair([]byte(in + "\r\n"))); got != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
}

func FuzzRepairingNeverPanics(f *testing.F) {
	f.Add([]byte("* LIST () \"/\" &AAA-\r\n"))
	f.Add([]byte("* OK [PERMANENTFLAGS (\\*)]\r\n"))
	f.Fuzz(func(_ *testing.T, line []byte) {
		l := &imapLines{}
		l.repair(append(line, '\n'))
	})
}
