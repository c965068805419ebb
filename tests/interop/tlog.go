// Reads what Hansa's journal published, with the code of Go's own checksum database (golang.org/x/mod/sumdb), and
// makes what Hansa must be able to read. Only the cosignature (C2SP tlog-cosignature) is written here, from its text.
//
//	tlog check FOLDER   FOLDER/case.json, FOLDER/tiles: prints what holds, one word a line; exits 1 at what does not
//	tlog make NAME      prints a key, a checkpoint signed with it and a cosignature, as JSON
package main

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

type testCase struct {
	Log, Witness, Checkpoint string
	Leaf                     []byte
	Index, Old               int64
	OldRoot                  tlog.Hash
	Inclusion                tlog.RecordProof
	Consistency              tlog.TreeProof
}

// cosigner is a witness's key: note.Verifier and, with a secret, note.Signer.
type cosigner struct {
	name   string
	public ed25519.PublicKey
	secret ed25519.PrivateKey
}

func (c cosigner) Name() string { return c.name }

func (c cosigner) KeyHash() uint32 {
	sum := sha256.Sum256(append([]byte(c.name+"\n\x04"), c.public...))
	return binary.BigEndian.Uint32(sum[:])
}

func (c cosigner) Verify(msg, sig []byte) bool {
	if len(sig) != 8+ed25519.SignatureSize {
		return false
	}
	return ed25519.Verify(c.public, cosigned(msg, binary.BigEndian.Uint64(sig)), sig[8:])
}

func (c cosigner) Sign(msg []byte) ([]byte, error) {
	var time [8]byte
	binary.BigEndian.PutUint64(time[:], 1700000000)
	return append(time[:], ed25519.Sign(c.secret, cosigned(msg, 1700000000))...), nil
}

func cosigned(msg []byte, time uint64) []byte {
	return append([]byte(fmt.Sprintf("cosignature/v1\ntime %d\n", time)), msg...)
}

// folder reads C2SP's layout: tiles of height 8 without the height in their path.
type folder string

func (f folder) Height() int                         { return 8 }
func (f folder) SaveTiles(_ []tlog.Tile, _ [][]byte) {}
func (f folder) ReadTiles(tiles []tlog.Tile) ([][]byte, error) {
	var data [][]byte
	for _, tile := range tiles {
		name := strings.Replace(tile.Path(), "tile/8/", "tile/", 1)
		read, err := os.ReadFile(filepath.Join(string(f), name))
		if err != nil {
			return nil, err
		}
		data = append(data, read)
	}
	return data, nil
}

func check(dir string) {
	var c testCase
	text, err := os.ReadFile(filepath.Join(dir, "case.json"))
	must("case", err)
	must("case", json.Unmarshal(text, &c))
	logKey, err := note.NewVerifier(c.Log)
	must("log key", err)
	parts := strings.SplitN(c.Witness, "+", 3)
	key, err := base64.StdEncoding.DecodeString(parts[2])
	must("witness key", err)
	witness := cosigner{name: parts[0], public: key[1:]}
	if fmt.Sprintf("%08x", witness.KeyHash()) != parts[1] || key[0] != 4 {
		log.Fatalf("witness key %s has another id", c.Witness)
	}
	opened, err := note.Open([]byte(c.Checkpoint), note.VerifierList(logKey, witness))
	must("note", err)
	if len(opened.Sigs) != 2 || len(opened.UnverifiedSigs) != 0 {
		log.Fatalf("%d signatures hold, %d are unknown", len(opened.Sigs), len(opened.UnverifiedSigs))
	}
	// sumdb's ParseTree wants its own first line; the rest of a checkpoint is the same
	origin, rest, _ := strings.Cut(opened.Text, "\n")
	tree, err := tlog.ParseTree([]byte("go.sum database tree\n" + rest))
	must("tree", err)
	if origin != logKey.Name() {
		log.Fatalf("the origin is %q", origin)
	}
	fmt.Println("checkpoint")
	leaf := tlog.RecordHash(c.Leaf)
	must("inclusion", tlog.CheckRecord(c.Inclusion, tree.N, tree.Hash, c.Index, leaf))
	fmt.Println("inclusion")
	must("consistency", tlog.CheckTree(c.Consistency, tree.N, tree.Hash, c.Old, c.OldRoot))
	fmt.Println("consistency")
	tiles := tlog.TileHashReader(tree, folder(filepath.Join(dir, "tiles")))
	for i := int64(0); i < tree.N; i++ {
		_, err := tiles.ReadHashes([]int64{tlog.StoredHashIndex(0, i)})
		must("tile", err)
	}
	record, err := tlog.ProveRecord(tree.N, c.Index, tiles)
	must("tiles' inclusion", err)
	extends, err := tlog.ProveTree(tree.N, c.Old, tiles)
	must("tiles' consistency", err)
	if fmt.Sprint(record, extends) != fmt.Sprint(c.Inclusion, c.Consistency) {
		log.Fatal("the proofs made from the tiles are others")
	}
	fmt.Println("tiles")
}

func produce(name string) {
	skey, vkey, err := note.GenerateKey(rand.Reader, name)
	must("key", err)
	signer, err := note.NewSigner(skey)
	must("signer", err)
	public, secret, err := ed25519.GenerateKey(rand.Reader)
	must("witness", err)
	witness := cosigner{"witness", public, secret}
	root := tlog.RecordHash([]byte("a record"))
	text := fmt.Sprintf("%s\n1\n%s\n", name, root)
	signed, err := note.Sign(&note.Note{Text: text}, signer, witness)
	must("sign", err)
	encoded := base64.StdEncoding.EncodeToString(append([]byte{4}, public...))
	var out bytes.Buffer
	must("json", json.NewEncoder(&out).Encode(map[string]string{
		"skey": skey, "vkey": vkey, "checkpoint": string(signed),
		"witness": fmt.Sprintf("witness+%08x+%s", witness.KeyHash(), encoded),
	}))
	fmt.Print(out.String())
}

func must(what string, err error) {
	if err != nil {
		log.Fatalf("%s: %v", what, err)
	}
}

func main() {
	switch {
	case len(os.Args) == 3 && os.Args[1] == "check":
		check(os.Args[2])
	case len(os.Args) == 3 && os.Args[1] == "make":
		produce(os.Args[2])
	default:
		log.Fatal("usage: tlog check FOLDER | make NAME")
	}
}
