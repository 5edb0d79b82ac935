// The DACs of the couplings and the biases beside a unit: what they hold, and how it may be written.
//
// A bias DAC has two registers: codes are written to the first at any time, and a load pulse, while
// the array is discharged, brings those of a whole vector to the outputs at once.

#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "pins.h"

namespace thermokron {

template <class Pins>
class Dacs {
public:
    Dacs(Pins& pins, const Sizes& sizes)
        : couplings(sizes.cells * sizes.cells), biases(sizes.cells), pins(pins), sizes(sizes),
          coupled(couplings.size()), uncoupled(sizes.cells * (sizes.cells + 1) / 2),
          inputs(sizes.cells), written(sizes.cells), missing(sizes.cells) {}

    std::vector<int32_t> couplings, biases;  // codes of the outputs
    std::string error;                       // what the last call that returned false is about

    // Whether the array may be let go.
    bool ready() {
        if (uncoupled)
            return wrong("discharge was released with " + std::to_string(uncoupled) +
                         " coupling DACs never written");
        return loaded || wrong("discharge was released, and the bias DACs were never loaded");
    }

    // Whether the outputs are these; the memory is the caller's, until `forget`.
    bool hold(const int32_t* those_couplings, const int32_t* those_biases) {
        if (!std::equal(biases.begin(), biases.end(), those_biases)) return false;
        if (known != those_couplings &&
            std::equal(couplings.begin(), couplings.end(), those_couplings))
            known = those_couplings;
        return known == those_couplings;
    }

    void forget() { known = nullptr; }

    // Codes of the next vector that were written do not count.
    void start_vector() {
        std::fill(written.begin(), written.end(), false);
        missing = sizes.cells;
    }

    void set_ready(bool coupling, bool bias) {
        if (coupling != coupling_ready) pins.dac_ready(coupling_ready = coupling);
        if (bias != bias_ready) pins.bias_ready(bias_ready = bias);
    }

    // How probable it is in a cycle that DACs are not ready.
    void misbehave(double probability, uint64_t seed) {
        stall = probability;
        stalls.state = seed;
        set_ready(true, true);
    }

    // Takes what the last edge, before which the outputs were these, has brought; false if the unit
    // must not have driven it. A load takes what was written before it; the input registers are
    // free for the next vector then, at the very edge.
    bool after_edge(const Outputs& was) {
        if (was.bias_load && !load(was.discharge)) return false;
        if (was.dac_valid && coupling_ready && !take_couplings(was.discharge)) return false;
        return !(was.bias_valid && bias_ready) || take_biases();
    }

    // Looks at what the next edge will bring.
    void look(const Outputs& now) {
        if (stall > 0.0) set_ready(!stalls.happens(stall), !stalls.happens(stall));
        if (now.dac_valid) pins.coupling_codes(offered_couplings);
        if (now.bias_valid) pins.bias_codes(offered_biases);
    }

private:
    bool wrong(const std::string& what) {
        error = what;
        return false;
    }

    // The code of one lane.
    static int32_t code_of(const Codes& those, uint32_t lane, uint32_t bits) {
        const uint32_t at = lane * bits, shift = at % 32, sign = 1u << (bits - 1);
        uint64_t word = those.codes[at / 32];
        if (shift + bits > 32) word |= uint64_t(those.codes[at / 32 + 1]) << 32;
        const uint32_t code = uint32_t(word >> shift) & ((1u << bits) - 1);
        return int32_t((code ^ sign) - sign);
    }

    bool take_couplings(bool discharge) {
        const Codes& those = offered_couplings;
        const uint32_t n = sizes.cells, i = those.row;
        if (!discharge) return wrong("a coupling DAC was written after discharge");
        if (!in_place("coupling", those)) return false;
        for (uint32_t lane = 0; lane < sizes.dac_lanes; ++lane) {
            if (!(those.enable >> lane & 1)) continue;
            const uint32_t j = those.first + lane;
            if (i > j || j >= n)
                return wrong("coupling DAC (" + std::to_string(i) + ", " + std::to_string(j) +
                             ") does not exist");
            const int32_t code = code_of(those, lane, sizes.coupling_bits);
            if (known && known[i * n + j] != code) known = nullptr;
            couplings[i * n + j] = couplings[j * n + i] = code;
            if (!coupled[i * n + j]) --uncoupled;
            coupled[i * n + j] = true;
        }
        return true;
    }

    bool take_biases() {
        const Codes& those = offered_biases;
        if (!in_place("bias", those)) return false;
        for (uint32_t lane = 0; lane < sizes.dac_lanes; ++lane) {
            if (!(those.enable >> lane & 1)) continue;
            const uint32_t i = those.first + lane;
            if (i >= sizes.cells) return wrong("bias DAC " + std::to_string(i) + " does not exist");
            inputs[i] = code_of(those, lane, sizes.bias_bits);
            if (!written[i]) --missing;
            written[i] = true;
        }
        return true;
    }

    bool in_place(const char* kind, const Codes& those) {
        return those.first % sizes.dac_lanes == 0 ||
               wrong(std::string(kind) + " DACs were written from " + std::to_string(those.first) +
                     " on, which is no multiple of their " + std::to_string(sizes.dac_lanes) +
                     " lanes");
    }

    bool load(bool discharge) {
        if (!discharge) return wrong("bias DACs were loaded after discharge");
        if (missing)
            return wrong("bias DACs were loaded with " + std::to_string(missing) +
                         " codes not written since the last load");
        biases = inputs;
        loaded = true;
        start_vector();
        return true;
    }

    Pins& pins;
    const Sizes sizes;
    std::vector<bool> coupled;
    uint32_t uncoupled;                  // coupling DACs that have never been written
    const int32_t* known = nullptr;      // what the couplings are known to be equal to
    std::vector<int32_t> inputs;         // first registers of the bias DACs
    std::vector<bool> written;           // those of them that have been, since the last load
    uint32_t missing;                    // those that have not
    bool loaded = false;                 // there has been a load
    Codes offered_couplings{}, offered_biases{};
    bool coupling_ready = false, bias_ready = false;
    double stall = 0.0;
    Draws stalls;
};

}  // namespace thermokron
