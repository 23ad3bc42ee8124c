// Products of matrices of which only rectangles count. Each piece of work is one product by torch's
// own library, on one thread: libraries split small products among threads badly.
//
// Only torch's stable C interface is used, declared here, so that no header of torch's is compiled.

#include <cstdint>
#include <cstring>

extern "C" {
int32_t aoti_torch_create_tensor_from_blob(void*, int64_t, const int64_t*, const int64_t*, int64_t,
                                           int32_t, int32_t, int32_t, void**);
int32_t aoti_torch_delete_tensor_object(void*);
int32_t aoti_torch_cpu_mm_out(void*, void*, void*);
int32_t aoti_torch_cpu_addmm_out(void*, void*, void*, void*, double, double);
}

// As numpy lays them out in tile_mm_cpu.py.
struct Matrix {
  char* data;
  int64_t rows, columns, row_stride, column_stride;
};
struct Rectangle {
  int64_t top, bottom, left, right;
};
struct Group {  // columns of a product, and which parts of the sum count for them
  int64_t left, right, first_run, last_run;
};
struct Run {
  int64_t begin, end;
};

namespace {

// A view as torch knows it; null where torch refused.
struct View {
  void* handle = nullptr;
  View(const Matrix& m, int64_t top, int64_t bottom, int64_t left, int64_t right, int32_t dtype,
       int64_t itemsize) {
    const int64_t sizes[2] = {bottom - top, right - left};
    const int64_t strides[2] = {m.row_stride, m.column_stride};
    char* data = m.data + (top * m.row_stride + left * m.column_stride) * itemsize;
    const int32_t cpu = 0, no_index = 0;
    if (aoti_torch_create_tensor_from_blob(data, 2, sizes, strides, 0, dtype, cpu, no_index,
                                           &handle))
      handle = nullptr;
  }
  ~View() {
    if (handle) aoti_torch_delete_tensor_object(handle);
  }
  View(const View&) = delete;
  View& operator=(const View&) = delete;
};

void clear(const Matrix& out, const Rectangle& r, int64_t itemsize) {
  for (int64_t row = r.top; row < r.bottom; row++)
    std::memset(out.data + (row * out.row_stride + r.left) * itemsize, 0,
                (r.right - r.left) * itemsize);
}

}  // namespace

// out[r] = a[rows of r] b[columns of r] for the rectangles r; 0 in the frozen ones. Returns how many
// products failed. `out` is contiguous.
extern "C" int64_t tile_mm(const Matrix* a, const Matrix* b, const Matrix* out,
                           const Rectangle* active, int64_t num_active, const Rectangle* frozen,
                           int64_t num_frozen, int32_t dtype, int64_t itemsize, int threads) {
  int64_t failed = 0;
#pragma omp parallel for num_threads(threads) schedule(dynamic) reduction(+ : failed)
  for (int64_t i = 0; i < num_active + num_frozen; i++) {
    if (i >= num_active) {
      clear(*out, frozen[i - num_active], itemsize);
      continue;
    }
    const Rectangle& r = active[i];
    View rows(*a, r.top, r.bottom, 0, a->columns, dtype, itemsize);
    View columns(*b, 0, b->rows, r.left, r.right, dtype, itemsize);
    View part(*out, r.top, r.bottom, r.left, r.right, dtype, itemsize);
    const bool known = rows.handle && columns.handle && part.handle;
    if (!known || aoti_torch_cpu_mm_out(part.handle, rows.handle, columns.handle)) failed++;
  }
  return failed;
}

// out = a b, where of b the runs of a group's rows count for its columns. With `accumulate`, what is
// in `out` is added. `out` is contiguous; rows are computed `chunk` at a time.
extern "C" int64_t masked_mm(const Matrix* a, const Matrix* b, const Matrix* out,
                             const Group* groups, int64_t num_groups, const Run* runs,
                             int64_t chunk, int accumulate, int32_t dtype, int64_t itemsize,
                             int threads) {
  const int64_t chunks = (out->rows + chunk - 1) / chunk;
  int64_t failed = 0;
#pragma omp parallel for num_threads(threads) schedule(dynamic) reduction(+ : failed)
  for (int64_t i = 0; i < chunks * num_groups; i++) {
    const Group& g = groups[i / chunks];
    const int64_t top = i % chunks * chunk;
    const int64_t bottom = top + chunk < out->rows ? top + chunk : out->rows;
    if (g.first_run == g.last_run && !accumulate)
      clear(*out, Rectangle{top, bottom, g.left, g.right}, itemsize);
    View part(*out, top, bottom, g.left, g.right, dtype, itemsize);
    for (int64_t k = g.first_run; k < g.last_run; k++) {
      View rows(*a, top, bottom, runs[k].begin, runs[k].end, dtype, itemsize);
      View columns(*b, runs[k].begin, runs[k].end, g.left, g.right, dtype, itemsize);
      const bool known = rows.handle && columns.handle && part.handle;
      const double keep = accumulate || k > g.first_run ? 1 : 0;
      if (!known || aoti_torch_cpu_addmm_out(part.handle, part.handle, rows.handle, columns.handle,
                                             keep, 1))
        failed++;
    }
  }
  return failed;
}
