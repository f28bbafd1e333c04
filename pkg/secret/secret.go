// Package secret keeps passwords: a [Secret] that cannot be printed by accident, and a [Keyring] that seals it for
// storage.
//
// Sealed values are AES-256-GCM under a key that HKDF derives from one of the keys of the key file. What a value
// belongs to (record and field) and the id of its key are authenticated with it, so a sealed password that is moved to
// another source opens nowhere.
package secret

import (
	"fmt"
	"log/slog"
)

// Hidden is what is printed instead of a secret.
const Hidden = "[hidden]"

// Secret is a password or token. However it is printed, logged or encoded, it shows as [Hidden]; only [Secret.Reveal]
// gives it away. It can be decoded from JSON, text and YAML like any string.
type Secret string

// Reveal returns the secret itself.
func (s Secret) Reveal() string { return string(s) }

// String is [Hidden].
func (Secret) String() string { return Hidden }

// GoString is [Hidden].
func (Secret) GoString() string { return Hidden }

// Format writes [Hidden] for every verb.
func (Secret) Format(state fmt.State, _ rune) { _, _ = state.Write([]byte(Hidden)) } // fmt keeps write errors itself

// MarshalJSON is [Hidden].
func (Secret) MarshalJSON() ([]byte, error) { return []byte(`"` + Hidden + `"`), nil }

// MarshalText is [Hidden].
func (Secret) MarshalText() ([]byte, error) { return []byte(Hidden), nil }

// LogValue is [Hidden].
func (Secret) LogValue() slog.Value { return slog.StringValue(Hidden) }
