// The cells' voltages as signals of a simulation, where its design has them: `cell_0` and so on.

#pragma once

#include <string>
#include <vector>

#include "vpi_user.h"

namespace thermokron {

class Voltages {
public:
    // Shows these, or zeros.
    void hold(const double* values) {
        if (!looked) look();
        for (size_t i = 0; i < cells.size(); ++i) {
            s_vpi_value value{};
            value.format = vpiRealVal;
            value.value.real = values ? values[i] : 0.0;
            vpi_put_value(cells[i], &value, nullptr, vpiNoDelay);
        }
    }

private:
    void look() {
        looked = true;
        vpiHandle modules = vpi_iterate(vpiModule, nullptr);
        while (vpiHandle module = modules ? vpi_scan(modules) : nullptr) {
            const std::string name = vpi_get_str(vpiFullName, module);
            for (size_t i = 0;; ++i) {
                std::string full = name + ".cell_" + std::to_string(i);
                vpiHandle cell = vpi_handle_by_name(full.data(), nullptr);
                if (!cell) break;
                cells.push_back(cell);
            }
        }
    }

    bool looked = false;
    std::vector<vpiHandle> cells;
};

}  // namespace thermokron
