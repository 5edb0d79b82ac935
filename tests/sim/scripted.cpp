// A unit without logic, for `test_player.py`: its outputs are what a test says, and what the player
// puts on its inputs can be looked at.

#include <algorithm>

#include "player.h"

using thermokron::Codes;
using thermokron::Outputs;
using thermokron::Sizes;

namespace {

struct Inputs {
    bool rst, dac_ready, bias_ready, drdy, results_tready;
    bool tvalid[2], tlast[2];
    uint32_t tdata[2][4], adc_data[4];
};

struct Pins {
    explicit Pins(const Sizes& sizes) : sizes(sizes) {}

    const Outputs& outputs() const { return now; }
    uint32_t temperature() const { return 0; }
    void coupling_codes(Codes& into) const { into = couplings; }
    void bias_codes(Codes& into) const { into = biases; }
    void results_tdata(uint32_t* into) const { std::copy_n(result, sizes.stream_bits / 32, into); }

    void rst(bool to) { inputs.rst = to; }
    void awaddr(uint32_t) {}
    void awvalid(bool) {}
    void wdata(uint32_t) {}
    void wstrb(uint32_t) {}
    void wvalid(bool) {}
    void bready(bool) {}
    void araddr(uint32_t) {}
    void arvalid(bool) {}
    void rready(bool) {}
    void dac_ready(bool to) { inputs.dac_ready = to; }
    void bias_ready(bool to) { inputs.bias_ready = to; }
    void drdy(bool to) { inputs.drdy = to; }
    void adc_data(const uint32_t* words) {
        std::copy_n(words, (sizes.cells * sizes.adc_bits + 31) / 32, inputs.adc_data);
    }
    void voltages(const double*) {}
    void tdata(uint32_t stream, const uint32_t* words) {
        std::copy_n(words, sizes.stream_bits / 32, inputs.tdata[stream]);
    }
    void tvalid(uint32_t stream, bool to) { inputs.tvalid[stream] = to; }
    void tlast(uint32_t stream, bool to) { inputs.tlast[stream] = to; }
    void results_tready(bool to) { inputs.results_tready = to; }

    const Sizes sizes;
    Outputs now{};
    Codes couplings{}, biases{};
    uint32_t result[4] = {};
    Inputs inputs{};
};

struct Unit {
    explicit Unit(const Sizes& sizes) : pins(sizes), player(pins, sizes) {}

    Pins pins;
    thermokron::Player<Pins> player;
};

}  // namespace

#include "capi.h"

extern "C" {

Unit* scripted_open(uint32_t cells, uint32_t bits, uint32_t dac_lanes, uint32_t stream_bits) {
    return new Unit({cells, bits, bits, bits, dac_lanes, stream_bits, 1000});
}

void scripted_close(Unit* unit) { delete unit; }
void scripted_edge(Unit* unit) { unit->player.after_edge(); }
Outputs* scripted_outputs(Unit* unit) { return &unit->pins.now; }
Codes* scripted_couplings(Unit* unit) { return &unit->pins.couplings; }
Codes* scripted_biases(Unit* unit) { return &unit->pins.biases; }
uint32_t* scripted_result(Unit* unit) { return unit->pins.result; }
const Inputs* scripted_inputs(Unit* unit) { return &unit->pins.inputs; }

}  // extern "C"
