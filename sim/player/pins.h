// A unit as the player sees it: its sizes, and what stands on its pins.

#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>

namespace thermokron {

struct Outputs {
    bool awready, wready, bvalid, arready, rvalid, irq;
    bool dac_valid, bias_valid, bias_load, discharge, convst;
    bool couplings_tready, biases_tready, results_tvalid, results_tlast;
    uint32_t bresp, rdata, rresp;
};

// What is offered to DACs at once: `codes` packed, lane 0 at the least significant end.
struct Codes {
    uint32_t row, first, enable;  // `first` is the column or the cell of lane 0
    uint32_t codes[8];            // 16 lanes of 16 bits
};

struct Sizes {
    uint32_t cells, coupling_bits, bias_bits, adc_bits, dac_lanes;
    uint32_t stream_bits;  // 0: the unit has no streams
    uint64_t period_ps;
};

// The streams into a unit, and how many there are.
enum Into : uint32_t { COUPLINGS, BIASES, SOURCES };

// What a simulator's environment says of the unit; ends the program if it says nothing.
inline Sizes sizes_of_environment() {
    Sizes sizes{};
    const char* text = std::getenv("THERMOKRON_UNIT_SIZES");
    unsigned long long period = 0;
    if (!text || std::sscanf(text, "%u %u %u %u %u %u %llu", &sizes.cells, &sizes.coupling_bits,
                             &sizes.bias_bits, &sizes.adc_bits, &sizes.dac_lanes,
                             &sizes.stream_bits, &period) != 7) {
        std::fprintf(stderr, "THERMOKRON_UNIT_SIZES is not set: cells, bits of couplings, biases "
                             "and ADC codes, DAC lanes, bits of streams, clock period in ps\n");
        std::exit(2);
    }
    sizes.period_ps = period;
    return sizes;
}

// SplitMix64 (Steele, Lea, Flood, OOPSLA 2014), for converters that misbehave.
struct Draws {
    uint64_t state = 0;
    uint64_t next() {
        uint64_t z = state += 0x9e3779b97f4a7c15u;
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
        return z ^ (z >> 31);
    }
    bool happens(double probability) { return double(next() >> 11) * 0x1p-53 < probability; }
};

}  // namespace thermokron
