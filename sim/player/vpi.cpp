// The player for a simulator that knows VPI (IEEE 1364-2005, 26 and 27), as a module for Icarus.
//
// After a rising edge, when the design has settled, the player looks at the pins and sets them;
// when there is an event, the pin `wake` changes, for which cocotb waits. The clock is cocotb's.

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <vector>

#include "player.h"
#include "voltages.h"

using thermokron::Codes;
using thermokron::Outputs;
using thermokron::Sizes;

namespace {

enum Pin : size_t {
    CLK, WAKE, S_AXI_AWREADY, S_AXI_WREADY, S_AXI_BVALID, S_AXI_ARREADY, S_AXI_RVALID, IRQ,
    DAC_VALID, BIAS_VALID, BIAS_LOAD, DISCHARGE, CONVST, S_AXI_BRESP, S_AXI_RDATA, S_AXI_RRESP,
    DAC_ROW, DAC_COL, DAC_ENABLE, DAC_CODE, BIAS_CELL, BIAS_ENABLE, BIAS_CODE, TEMPERATURE,
    ADC_DATA, RST, S_AXI_AWADDR, S_AXI_AWVALID, S_AXI_WDATA, S_AXI_WSTRB, S_AXI_WVALID,
    S_AXI_BREADY, S_AXI_ARADDR, S_AXI_ARVALID, S_AXI_RREADY, DAC_READY, BIAS_READY, DRDY,
    // those of the streams, which a unit may be without: of each into it at the same distances
    S_AXIS_COUPLINGS_TDATA, S_AXIS_COUPLINGS_TVALID, S_AXIS_COUPLINGS_TLAST, S_AXIS_COUPLINGS_TREADY,
    S_AXIS_BIASES_TDATA, S_AXIS_BIASES_TVALID, S_AXIS_BIASES_TLAST, S_AXIS_BIASES_TREADY,
    M_AXIS_RESULTS_TDATA, M_AXIS_RESULTS_TVALID, M_AXIS_RESULTS_TLAST, M_AXIS_RESULTS_TREADY,
    PINS
};

const char* const NAMES[PINS] = {
    "clk", "wake", "s_axi_awready", "s_axi_wready", "s_axi_bvalid", "s_axi_arready", "s_axi_rvalid",
    "irq", "dac_valid", "bias_valid", "bias_load", "discharge", "convst", "s_axi_bresp",
    "s_axi_rdata", "s_axi_rresp", "dac_row", "dac_col", "dac_enable", "dac_code", "bias_cell",
    "bias_enable", "bias_code", "temperature", "adc_data", "rst", "s_axi_awaddr", "s_axi_awvalid",
    "s_axi_wdata", "s_axi_wstrb", "s_axi_wvalid", "s_axi_bready", "s_axi_araddr", "s_axi_arvalid",
    "s_axi_rready", "dac_ready", "bias_ready", "drdy", "s_axis_couplings_tdata",
    "s_axis_couplings_tvalid", "s_axis_couplings_tlast", "s_axis_couplings_tready",
    "s_axis_biases_tdata", "s_axis_biases_tvalid", "s_axis_biases_tlast", "s_axis_biases_tready",
    "m_axis_results_tdata", "m_axis_results_tvalid", "m_axis_results_tlast",
    "m_axis_results_tready"};

// How the player reaches a pin. Of those that a unit has not it makes no use.
class Pins {
public:
    Pins(vpiHandle top, const Sizes& sizes)
        : sizes(sizes), data(std::max((sizes.cells * sizes.adc_bits + 31) / 32, 4u)) {
        for (const char* name : NAMES) handles.push_back(vpi_handle_by_name(const_cast<char*>(name), top));
    }

    Outputs outputs() const {
        const bool streams = sizes.stream_bits;
        return {on(S_AXI_AWREADY), on(S_AXI_WREADY), on(S_AXI_BVALID), on(S_AXI_ARREADY),
                on(S_AXI_RVALID), on(IRQ), on(DAC_VALID), on(BIAS_VALID), on(BIAS_LOAD),
                on(DISCHARGE), on(CONVST), streams && on(S_AXIS_COUPLINGS_TREADY),
                streams && on(S_AXIS_BIASES_TREADY), streams && on(M_AXIS_RESULTS_TVALID),
                streams && on(M_AXIS_RESULTS_TLAST), get(S_AXI_BRESP), get(S_AXI_RDATA),
                get(S_AXI_RRESP)};
    }

    uint32_t temperature() const { return get(TEMPERATURE); }

    void coupling_codes(Codes& into) const {
        into.row = get(DAC_ROW);
        into.first = get(DAC_COL);
        into.enable = get(DAC_ENABLE);
        get_words(DAC_CODE, sizes.dac_lanes * sizes.coupling_bits, into.codes);
    }

    void bias_codes(Codes& into) const {
        into.first = get(BIAS_CELL);
        into.enable = get(BIAS_ENABLE);
        get_words(BIAS_CODE, sizes.dac_lanes * sizes.bias_bits, into.codes);
    }

    void results_tdata(uint32_t* into) const {
        get_words(M_AXIS_RESULTS_TDATA, sizes.stream_bits, into);
    }

    void tdata(uint32_t stream, const uint32_t* words) {
        put_words(of(stream, S_AXIS_COUPLINGS_TDATA), words, sizes.stream_bits);
    }

    void tvalid(uint32_t stream, bool to) { put(of(stream, S_AXIS_COUPLINGS_TVALID), to); }
    void tlast(uint32_t stream, bool to) { put(of(stream, S_AXIS_COUPLINGS_TLAST), to); }
    void results_tready(bool to) { put(M_AXIS_RESULTS_TREADY, to); }

    void rst(bool to) { put(RST, to); }
    void awaddr(uint32_t to) { put(S_AXI_AWADDR, to); }
    void awvalid(bool to) { put(S_AXI_AWVALID, to); }
    void wdata(uint32_t to) { put(S_AXI_WDATA, to); }
    void wstrb(uint32_t to) { put(S_AXI_WSTRB, to); }
    void wvalid(bool to) { put(S_AXI_WVALID, to); }
    void bready(bool to) { put(S_AXI_BREADY, to); }
    void araddr(uint32_t to) { put(S_AXI_ARADDR, to); }
    void arvalid(bool to) { put(S_AXI_ARVALID, to); }
    void rready(bool to) { put(S_AXI_RREADY, to); }
    void dac_ready(bool to) { put(DAC_READY, to); }
    void bias_ready(bool to) { put(BIAS_READY, to); }
    void drdy(bool to) { put(DRDY, to); }

    void adc_data(const uint32_t* words) { put_words(ADC_DATA, words, sizes.cells * sizes.adc_bits); }

    void voltages(const double* values) { cells.hold(values); }

    bool on(Pin pin) const { return get(pin) & 1; }

    uint32_t get(Pin pin) const {
        s_vpi_value value{};
        value.format = vpiIntVal;  // what is undefined reads as 0
        vpi_get_value(handles[pin], &value);
        return uint32_t(value.value.integer);
    }

    void put(Pin pin, uint32_t to) {
        s_vpi_vecval word{PLI_INT32(to), 0};
        s_vpi_value value{};
        value.format = vpiVectorVal;
        value.value.vector = &word;
        vpi_put_value(handles[pin], &value, nullptr, vpiNoDelay);
    }

    vpiHandle handle(Pin pin) const { return handles[pin]; }

private:
    // The pin of a stream into the unit, from the same one of the first.
    static Pin of(uint32_t stream, Pin first) {
        return Pin(first + stream * (S_AXIS_BIASES_TDATA - S_AXIS_COUPLINGS_TDATA));
    }

    void put_words(Pin pin, const uint32_t* words, uint32_t bits) {
        for (size_t i = 0; i < (bits + 31) / 32; ++i) data[i] = {PLI_INT32(words[i]), 0};
        s_vpi_value value{};
        value.format = vpiVectorVal;
        value.value.vector = data.data();
        vpi_put_value(handles[pin], &value, nullptr, vpiNoDelay);
    }

    void get_words(Pin pin, uint32_t bits, uint32_t* into) const {
        s_vpi_value value{};
        value.format = vpiVectorVal;
        vpi_get_value(handles[pin], &value);
        for (size_t i = 0; i < (bits + 31) / 32; ++i) {
            const s_vpi_vecval word = value.value.vector[i];
            into[i] = uint32_t(word.aval & ~word.bval);  // what is undefined reads as 0
        }
    }

    const Sizes sizes;
    std::vector<vpiHandle> handles;
    std::vector<s_vpi_vecval> data;
    thermokron::Voltages cells;
};

struct Unit {
    Unit(vpiHandle top, const Sizes& sizes) : pins(top, sizes), player(pins, sizes) {}

    Pins pins;
    thermokron::Player<Pins> player;
    bool running = false, wake = false;
};

std::unique_ptr<Unit> unit;

PLI_INT32 settled(t_cb_data*) {
    if (!unit->running) return 0;
    unit->player.after_edge();
    unit->running = unit->player.event() == thermokron::NONE;
    if (!unit->running) unit->pins.put(WAKE, unit->wake = !unit->wake);
    return 0;
}

void call_at(PLI_INT32 reason, PLI_INT32 (*what)(t_cb_data*), vpiHandle object = nullptr) {
    s_vpi_time now{vpiSimTime, 0, 0, 0.0};  // a delay, which simulators copy
    s_vpi_value number{vpiIntVal, {}};
    s_cb_data call{};
    call.reason = reason;
    call.cb_rtn = what;
    call.time = &now;
    call.obj = object;
    call.value = object ? &number : nullptr;
    vpi_register_cb(&call);
}

PLI_INT32 edge(t_cb_data* call) {
    if (unit->running && call->value->value.integer == 1) call_at(cbReadWriteSynch, settled);
    return 0;
}

PLI_INT32 begin(t_cb_data*) {
    vpiHandle modules = vpi_iterate(vpiModule, nullptr);
    while (vpiHandle top = modules ? vpi_scan(modules) : nullptr) {
        if (!vpi_handle_by_name(const_cast<char*>(NAMES[WAKE]), top)) continue;
        unit = std::make_unique<Unit>(top, thermokron::sizes_of_environment());
        call_at(cbValueChange, edge, unit->pins.handle(CLK));
        unit->pins.put(WAKE, 0);
    }
    return 0;
}

void at_startup() { call_at(cbStartOfSimulation, begin); }

}  // namespace

#include "capi.h"

extern "C" {

Unit* player_unit() { return unit.get(); }

// Lets the clock run until there is an event, with which `wake` changes.
void player_run(Unit* unit) { unit->running = true; }

void (*vlog_startup_routines[])() = {at_startup, nullptr};

}  // extern "C"
