// The Python module `_C`. Importing it registers the CPU operators.
#define Py_LIMITED_API 0x030b0000
#include <Python.h>

#include <exception>

#include "../../cpu/isa.h"

static PyObject* isa(PyObject*, PyObject*) {
  try {
    return PyUnicode_FromString(spurmix::cpu::isa_name());
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
    return nullptr;
  }
}

static PyMethodDef methods[] = {
    {"isa", isa, METH_NOARGS, "The instruction set the kernels run with: baseline, avx2, avx512 or avx512bf16."},
    {nullptr, nullptr, 0, nullptr}};

static PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "_C", "Compiled CPU operators.", -1, methods, nullptr, nullptr, nullptr, nullptr};

PyMODINIT_FUNC PyInit__C() { return PyModule_Create(&module); }
