package secret

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/goccy/go-yaml"

	"posthorn/pkg/fault"
)

const plain Secret = "correct horse battery staple"

func keyring(t *testing.T) *Keyring {
	t.Helper()
	keys, err := LoadOrCreate(filepath.Join(t.TempDir(), "data", "keys"))
	if err != nil {
		t.Fatal(err)
	}
	return keys
}

func seal(t *testing.T, keys *Keyring, record string) Sealed {
	t.Helper()
	sealed, err := keys.Seal(plain, record, "password")
	if err != nil {
		t.Fatal(err)
	}
	return sealed
}

func TestASecretNeverShowsHoweverItIsPrinted(t *testing.T) {
	holder := struct {
		Name     string
		Password Secret
		Pointer  *Secret
		Map      map[string]Secret
	}{"sales", plain, new(plain), map[string]Secret{"a": plain}}
	var log bytes.Buffer
	for _, handler := range []slog.Handler{slog.NewTextHandler(&log, nil), slog.NewJSONHandler(&log, nil)} {
		slog.New(handler).Info("x", "secret", plain, "holder", holder, "group", slog.GroupValue(slog.Any("s", plain)))
	}
	asJSON, err := json.Marshal(holder)
	if err != nil {
		t.Fatal(err)
	}
	asYAML, err := yaml.Marshal(holder)
	if err != nil {
		t.Fatal(err)
	}
	wrapped := fmt.Errorf("wrong: %w %v", fs.ErrInvalid, plain)
	shown := []string{log.String(), string(asJSON), string(asYAML), wrapped.Error()}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%10s"} {
		shown = append(shown, fmt.Sprintf(verb, plain), fmt.Sprintf(verb, holder), fmt.Sprintf(verb, &holder))
	}
	for _, text := range shown {
		if strings.Contains(text, string(plain)) || strings.Contains(text, fmt.Sprintf("%x", string(plain))) {
			t.Errorf("the secret shows: %s", text)
		}
	}
	if plain.Reveal() != string(plain) || fmt.Sprint(plain) != Hidden {
		t.Errorf("%q, %q", plain.Reveal(), fmt.Sprint(plain))
	}
}

func TestASecretIsDecodedLikeAString(t *testing.T) {
	var form struct{ Password Secret }
	if err := json.Unmarshal([]byte(`{"password":"hunter2"}`), &form); err != nil || form.Password.Reveal() != "hunter2" {
		t.Fatal(err, form.Password.Reveal())
	}
}

func TestWhatIsSealedOpensForItsRecordAndFieldOnly(t *testing.T) {
	keys := keyring(t)
	sealed := seal(t, keys, "sales")
	opened, err := keys.Open(sealed, "sales", "password")
	if err != nil || opened != plain {
		t.Fatalf("%v, opened %q", err, opened.Reveal())
	}
	altered := Sealed{KeyID: sealed.KeyID, Box: bytes.Clone(sealed.Box)}
	altered.Box[len(altered.Box)/2] ^= 1
	for name, try := range map[string]struct {
		sealed        Sealed
		record, field string
	}{
		"another source":       {sealed, "info", "password"},
		"another field":        {sealed, "sales", "token"},
		"shifted border":       {sealed, "salesp", "assword"},
		"an altered box":       {altered, "sales", "password"},
		"an empty box":         {Sealed{KeyID: sealed.KeyID}, "sales", "password"},
		"nothing":              {Sealed{}, "sales", "password"},
		"a key that is not us": {Sealed{KeyID: "other", Box: sealed.Box}, "sales", "password"},
	} {
		opened, err := keys.Open(try.sealed, try.record, try.field)
		if fault.CodeOf(err) != fault.AuthKey || opened != "" {
			t.Errorf("%s: %v, opened %q", name, err, opened.Reveal())
		}
	}
}

func TestTheSameSecretSealedTwiceLooksDifferent(t *testing.T) {
	keys := keyring(t)
	if bytes.Equal(seal(t, keys, "sales").Box, seal(t, keys, "sales").Box) {
		t.Error("equal boxes")
	}
}

func TestTheKeyFileIsMadeOnceAndForItsOwnerOnly(t *testing.T) {
	keys := keyring(t)
	if !keys.Created() {
		t.Error("not reported as created")
	}
	info, err := os.Stat(keys.Path())
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("%v, mode %v", err, info.Mode())
	}
	again, err := LoadOrCreate(keys.Path())
	if err != nil || again.Created() {
		t.Fatalf("%v, created again: %v", err, again.Created())
	}
	if opened, err := again.Open(seal(t, keys, "sales"), "sales", "password"); err != nil || opened != plain {
		t.Errorf("%v, opened %q", err, opened.Reveal())
	}
	left, err := os.ReadDir(filepath.Dir(keys.Path()))
	if err != nil || len(left) != 1 {
		t.Errorf("%v, files left: %v", err, left)
	}
}

func TestProcessesThatStartTogetherShareOneKeyFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keys")
	rings := make([]*Keyring, 8)
	var group sync.WaitGroup
	for i := range rings {
		group.Go(func() {
			var err error
			if rings[i], err = LoadOrCreate(path); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	if t.Failed() {
		return
	}
	created := 0
	for _, ring := range rings {
		if ring.Created() {
			created++
		}
		if _, err := ring.Open(seal(t, rings[0], "sales"), "sales", "password"); err != nil {
			t.Error(err)
		}
	}
	if created != 1 {
		t.Errorf("%d processes made the file", created)
	}
}

func TestANewKeyEncryptsAndTheOldOnesStillDecrypt(t *testing.T) {
	keys := keyring(t)
	other, err := Load(keys.Path()) // another process, started before
	if err != nil {
		t.Fatal(err)
	}
	old := seal(t, keys, "sales")
	added, err := keys.AddKey()
	if err != nil {
		t.Fatal(err)
	}
	if ids := keys.KeyIDs(); len(ids) != 2 || ids[1] != added {
		t.Fatalf("keys %v, added %s", ids, added)
	}
	again, changed, err := keys.Rewrap(old, "sales", "password")
	if err != nil || !changed || again.KeyID != added {
		t.Fatalf("%v, changed %v, key %s, want %s", err, changed, again.KeyID, added)
	}
	if _, changed, err := keys.Rewrap(again, "sales", "password"); err != nil || changed {
		t.Errorf("rewrapped twice: %v, %v", changed, err)
	}
	if _, _, err := keys.Rewrap(old, "info", "password"); fault.CodeOf(err) != fault.AuthKey {
		t.Errorf("a swapped value was rewrapped: %v", err)
	}
	for name, ring := range map[string]*Keyring{"this process": keys, "the other process": other} {
		for _, sealed := range []Sealed{old, again} {
			if opened, err := ring.Open(sealed, "sales", "password"); err != nil || opened != plain {
				t.Errorf("%s, key %s: %v", name, sealed.KeyID, err)
			}
		}
	}
	info, err := os.Stat(keys.Path())
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, mode %v", err, info.Mode())
	}
}

func TestAMissingKeyFileIsAMissingKey(t *testing.T) {
	_, err := Load(filepath.Join(t.TempDir(), "keys"))
	if fault.CodeOf(err) != fault.AuthKey || !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v", err)
	}
}

func TestAKeyFileThatCannotBeTrustedIsRefusedWithASentence(t *testing.T) {
	good := "kaaaaaaaa " + strings.Repeat("A", 43) + "=\n"
	for name, file := range map[string]struct {
		mode fs.FileMode
		text string
		want string
	}{
		"readable by the group": {0o640, good, "the key file KEYS can be read or changed by other users (mode 0640): " +
			"take their rights away with `chmod 600 KEYS`"},
		"readable by all": {0o604, good, "the key file KEYS can be read or changed by other users (mode 0604): " +
			"take their rights away with `chmod 600 KEYS`"},
		"empty": {0o600, "# nothing\n", "the key file KEYS holds no key; put back your copy of it"},
		"a short key": {
			0o600,
			"kaaaaaaaa QUJD\n",
			"the key file KEYS is damaged: line 1 holds no key of 32 bytes; put back your copy of it",
		},
		"no id": {
			0o600,
			"\nA B\n",
			"the key file KEYS is damaged: line 2 does not start with the id of a key; put back your copy of it",
		},
		"an id twice": {
			0o600,
			good + good,
			"the key file KEYS is damaged: line 2 repeats the id kaaaaaaaa; put back your copy of it",
		},
		"something else": {0o600, strings.Repeat("\x00\xff", 99),
			"the key file KEYS is damaged: line 1 does not start with the id of a key; put back your copy of it"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "keys")
			if err := os.WriteFile(path, []byte(file.text), file.mode); err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(path, file.mode); err != nil {
				t.Fatal(err)
			}
			_, err := LoadOrCreate(path)
			if err == nil || strings.ReplaceAll(err.Error(), path, "KEYS") != file.want {
				t.Errorf("got  %v\nwant %s", err, file.want)
			}
			if kept, err := os.ReadFile(path); err != nil || string(kept) != file.text {
				t.Errorf("the file was changed: %v", err)
			}
		})
	}
}

func TestAKeyFileThatCannotBeMadeIsExplained(t *testing.T) {
	blocked := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(blocked, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := LoadOrCreate(filepath.Join(blocked, "keys"))
	if err == nil || !strings.Contains(err.Error(), "the key file") {
		t.Errorf("%v", err)
	}
	if _, err := LoadOrCreate(filepath.Dir(blocked)); err == nil || !strings.HasSuffix(err.Error(), "is no file") {
		t.Errorf("%v", err)
	}
}

func TestAKeyringNeverShowsItsKeys(t *testing.T) {
	keys := keyring(t)
	if text := fmt.Sprintf("%v %+v %#v %s", keys, keys, keys, keys); strings.Contains(text, "bytes") ||
		!strings.Contains(text, "keys of ") {
		t.Errorf("%s", text)
	}
}
