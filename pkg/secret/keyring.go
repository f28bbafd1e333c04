package secret

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"

	"posthorn/pkg/fault"
)

// keySize is the size of one key in bytes (AES-256).
const keySize = 32

// mostKeyFile is far more than any honest key file has, in bytes.
const mostKeyFile = 1 << 20

const keyFileHead = `# The keys of Posthorn: one per line, id and key. The last one encrypts, all of them decrypt.
# Whoever has this file and the stored data can read the stored passwords: keep a copy in a safe place, apart from the
# backups of the data. Without it every password has to be typed again.
`

var keyID = regexp.MustCompile(`^[a-z0-9_-]{1,64}$`)

// Sealed is a secret as it is stored: the id of its key, and nonce, ciphertext and tag in one box.
type Sealed struct {
	KeyID string `json:"key"`
	Box   []byte `json:"box"`
}

// IsZero tells whether nothing is sealed.
func (s Sealed) IsZero() bool { return s.KeyID == "" && len(s.Box) == 0 }

type key struct {
	id    string
	bytes [keySize]byte
}

// Keyring holds the keys of one key file. Several processes share a key file by its path: a key that another process
// has added meanwhile is read when it is first met. A Keyring is safe for concurrent use.
type Keyring struct {
	path    string
	created bool

	mu   sync.RWMutex
	keys []key // the last one encrypts
}

// Load reads a key file. A missing file is auth.key_missing.
func Load(path string) (*Keyring, error) {
	keys, err := readKeys(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fault.New(fault.AuthKey, fmt.Errorf("there is no key file %s: %w", path, fs.ErrNotExist), nil)
	}
	if err != nil {
		return nil, err
	}
	return &Keyring{path: path, keys: keys}, nil
}

// LoadOrCreate reads a key file; when there is none it makes one with a first key, mode 0600, in a directory that is
// made with mode 0700 when it is missing. See [Keyring.Created].
func LoadOrCreate(path string) (*Keyring, error) {
	keys, err := readKeys(path)
	if err == nil {
		return &Keyring{path: path, keys: keys}, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	first, err := newKey()
	if err != nil {
		return nil, err
	}
	err = writeKeys(path, []key{first}, true)
	if errors.Is(err, fs.ErrExist) { // another process was faster: its key counts
		return Load(path)
	}
	if err != nil {
		return nil, fmt.Errorf("the key file %s cannot be created: %w; "+
			"give Posthorn the right to write there, or name another place for the key file", path, reason(err))
	}
	return &Keyring{path: path, keys: []key{first}, created: true}, nil
}

// Path of the key file.
func (k *Keyring) Path() string { return k.path }

// Created tells whether [LoadOrCreate] made the file, so that the operator can be told to keep a copy.
func (k *Keyring) Created() bool { return k.created }

// KeyIDs lists the ids of the keys in the order of the file: the last one encrypts.
func (k *Keyring) KeyIDs() []string {
	k.mu.RLock()
	defer k.mu.RUnlock()
	ids := make([]string, len(k.keys))
	for i, key := range k.keys {
		ids[i] = key.id
	}
	return ids
}

// Seal encrypts plain with the newest key, bound to the record (such as the id of a source) and the field it is for.
func (k *Keyring) Seal(plain Secret, record, field string) (Sealed, error) {
	k.mu.RLock()
	newest := k.keys[len(k.keys)-1]
	k.mu.RUnlock()
	box, err := newest.cipher()
	if err != nil {
		return Sealed{}, err
	}
	bound := boundTo(record, field, newest.id)
	sealed := box.Seal(nil, nil, []byte(plain), bound) //nolint:gosec // the cipher makes a random nonce itself
	return Sealed{KeyID: newest.id, Box: sealed}, nil
}

// Open decrypts what was sealed for the same record and field. Without its key, and when it was sealed for something
// else or was altered, the error is auth.key_missing.
func (k *Keyring) Open(sealed Sealed, record, field string) (Secret, error) {
	key, ok := k.find(sealed.KeyID)
	if !ok {
		return "", fault.New(fault.AuthKey, fmt.Errorf("no key %q in %s", sealed.KeyID, k.path), nil)
	}
	box, err := key.cipher()
	if err != nil {
		return "", err
	}
	plain, err := box.Open(nil, nil, sealed.Box, boundTo(record, field, sealed.KeyID))
	if err != nil {
		return "", fault.New(fault.AuthKey,
			fmt.Errorf("key %q does not open the %s of %s: it was altered, or sealed for something else",
				sealed.KeyID, field, record), nil)
	}
	return Secret(plain), nil
}

// AddKey makes a new key, appends it to the key file and encrypts with it from now on. Seal stored values anew with
// [Keyring.Rewrap] afterwards. One process at a time may add keys.
func (k *Keyring) AddKey() (id string, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	keys, err := readKeys(k.path) // another process may have added one
	if err != nil {
		return "", err
	}
	added, err := newKey()
	if err != nil {
		return "", err
	}
	keys = append(keys, added)
	if err := writeKeys(k.path, keys, false); err != nil {
		return "", fmt.Errorf("the key file %s cannot be changed: %w; "+
			"nothing was changed", k.path, reason(err))
	}
	k.keys = keys
	return added.id, nil
}

// Rewrap seals a value anew with the newest key; changed is false when it already was.
func (k *Keyring) Rewrap(sealed Sealed, record, field string) (again Sealed, changed bool, err error) {
	plain, err := k.Open(sealed, record, field)
	if err != nil {
		return Sealed{}, false, err
	}
	k.mu.RLock()
	newest := k.keys[len(k.keys)-1].id
	k.mu.RUnlock()
	if sealed.KeyID == newest {
		return sealed, false, nil
	}
	again, err = k.Seal(plain, record, field)
	return again, err == nil, err
}

// String names the key file and never shows a key.
func (k *Keyring) String() string { return "keys of " + k.path }

// GoString names the key file and never shows a key.
func (k *Keyring) GoString() string { return k.String() }

// find looks a key up, once more in the file when it is unknown.
func (k *Keyring) find(id string) (key, bool) {
	k.mu.RLock()
	i := slices.IndexFunc(k.keys, func(key key) bool { return key.id == id })
	if i >= 0 {
		defer k.mu.RUnlock()
		return k.keys[i], true
	}
	k.mu.RUnlock()

	keys, err := readKeys(k.path)
	if err != nil {
		return key{}, false
	}
	i = slices.IndexFunc(keys, func(key key) bool { return key.id == id })
	if i < 0 {
		return key{}, false
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.keys = keys
	return keys[i], true
}

func newKey() (key, error) {
	made := key{id: "k" + strings.ToLower(rand.Text()[:8])}
	_, err := rand.Read(made.bytes[:])
	return made, err
}

// cipher derives the key for sealed values: a key of the file is never used itself.
func (k key) cipher() (cipher.AEAD, error) {
	derived, err := hkdf.Key(sha256.New, k.bytes[:], nil, "posthorn sealed value v1", keySize)
	if err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(derived)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCMWithRandomNonce(block)
}

// boundTo is the associated data of a sealed value. Lengths keep ("ab","c") and ("a","bc") apart.
func boundTo(parts ...string) []byte {
	var data []byte
	for _, part := range parts {
		data = binary.BigEndian.AppendUint32(data, uint32(len(part))) //nolint:gosec // ids and field names are short
		data = append(data, part...)
	}
	return data
}

// readKeys reads a key file. The error of a missing file is fs.ErrNotExist; every other says what to do.
func readKeys(path string) ([]key, error) {
	file, err := os.Open(path) //nolint:gosec // the operator names the key file
	if errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if err != nil {
		return nil, fmt.Errorf("the key file %s cannot be read: %w; "+
			"give Posthorn's user the right to read it", path, reason(err))
	}
	defer func() { _ = file.Close() }() // only read
	info, err := file.Stat()
	if err != nil {
		return nil, fmt.Errorf("the key file %s cannot be read: %w", path, reason(err))
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("the key file %s is no file", path)
	}
	if open := info.Mode().Perm() & 0o077; open != 0 && runtime.GOOS != "windows" { // Windows has no such bits
		return nil, fmt.Errorf("the key file %s can be read or changed by other users (mode %04o): "+
			"take their rights away with `chmod 600 %s`", path, info.Mode().Perm(), path)
	}
	data, err := io.ReadAll(io.LimitReader(file, mostKeyFile))
	if err != nil {
		return nil, fmt.Errorf("the key file %s cannot be read: %w", path, reason(err))
	}
	return parseKeys(path, data)
}

// parseKeys reads lines of id and key. Its errors never quote a line: it may be a key.
func parseKeys(path string, data []byte) ([]key, error) {
	var keys []key
	number := 0
	for line := range bytes.Lines(data) {
		number++
		text := strings.TrimSpace(string(line))
		if text == "" || strings.HasPrefix(text, "#") {
			continue
		}
		wrong := func(what string) error {
			return fmt.Errorf("the key file %s is damaged: line %d %s; put back your copy of it", path, number, what)
		}
		id, encoded, _ := strings.Cut(text, " ")
		if !keyID.MatchString(id) {
			return nil, wrong("does not start with the id of a key")
		}
		if slices.ContainsFunc(keys, func(other key) bool { return other.id == id }) {
			return nil, wrong("repeats the id " + id)
		}
		raw, err := base64.StdEncoding.DecodeString(strings.TrimSpace(encoded))
		if err != nil || len(raw) != keySize {
			return nil, wrong(fmt.Sprintf("holds no key of %d bytes", keySize))
		}
		keys = append(keys, key{id: id, bytes: [keySize]byte(raw)})
	}
	if len(keys) == 0 {
		return nil, fmt.Errorf("the key file %s holds no key; put back your copy of it", path)
	}
	return keys, nil
}

// writeKeys writes a whole key file beside the old one and puts it in place, so that a crash never leaves half a file.
// With fresh, a file that is already there is left alone: fs.ErrExist.
func writeKeys(path string, keys []key, fresh bool) (err error) {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	file, err := os.CreateTemp(dir, ".keys-*") // mode 0600
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(file.Name()) }() // gone already when it was renamed
	var text bytes.Buffer
	text.WriteString(keyFileHead)
	for _, key := range keys {
		fmt.Fprintf(&text, "%s %s\n", key.id, base64.StdEncoding.EncodeToString(key.bytes[:]))
	}
	_, err = file.Write(text.Bytes())
	err = errors.Join(err, file.Sync(), file.Close())
	if err != nil {
		return err
	}
	if fresh {
		err = os.Link(file.Name(), path)
		if err != nil && !errors.Is(err, fs.ErrExist) { // a file system without links
			if _, statErr := os.Lstat(path); statErr == nil {
				return fs.ErrExist
			}
			err = os.Rename(file.Name(), path)
		}
	} else {
		err = os.Rename(file.Name(), path)
	}
	if err != nil {
		return err
	}
	return syncDir(dir)
}

// syncDir makes a new name in a directory survive a power cut.
func syncDir(dir string) error {
	if runtime.GOOS == "windows" { // directories cannot be synced there
		return nil
	}
	open, err := os.Open(dir) //nolint:gosec // the directory of the key file
	if err != nil {
		return err
	}
	return errors.Join(open.Sync(), open.Close())
}

// reason strips the operation and the path from an error of the file system: the sentence around it names them.
func reason(err error) error {
	if path, ok := errors.AsType[*fs.PathError](err); ok {
		return path.Err
	}
	return err
}
