//! Objects that are the sum of their fields: dataclasses and pydantic models;
//! and what stands for a class.

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString, PyType};

use super::failure::step_to;
use super::unusual::equals_as;
use super::walk::{Opaque, Walk, Walker};
use crate::core::key::encode::tag;

impl Walker<'_> {
    pub(super) fn dataclass(
        &mut self,
        value: &Bound<'_, PyAny>,
        class: &Bound<'_, PyType>,
    ) -> Walk {
        let fields = class.getattr("__dataclass_fields__")?;
        let fields: Vec<Bound<'_, PyAny>> =
            fields.call_method0("values")?.try_iter()?.collect::<PyResult<_>>()?;
        self.encoder.tag(tag::FIELDS);
        self.class(class)?;
        for field in fields {
            // Pseudo-fields (ClassVar, InitVar) and those that `==` skips do not count.
            let kind = field.getattr("_field_type")?.str()?;
            if kind.to_string_lossy() != "_FIELD" || !field.getattr("compare")?.is_truthy()? {
                continue;
            }
            let name = field.getattr("name")?.cast_into::<PyString>().map_err(PyErr::from)?;
            self.text(&name)?;
            let item = value.getattr(&name)?;
            self.value(&item).map_err(|failure| failure.within(|| step_to(&name)))?;
        }
        self.encoder.tag(tag::NONE);
        Ok(())
    }

    /// As the model's `==`: fields, extra fields and private attributes, but
    /// not what a cached property has left in the instance's dict.
    pub(super) fn pydantic(&mut self, value: &Bound<'_, PyAny>, class: &Bound<'_, PyType>) -> Walk {
        let fields = class
            .getattr("__pydantic_fields__")
            .or_else(|_| class.getattr("model_fields"))?
            .try_iter()?
            .collect::<PyResult<Vec<_>>>()?;
        let values = value.getattr("__dict__")?;
        let values = values.cast::<PyDict>().map_err(PyErr::from)?;
        self.encoder.tag(tag::FIELDS);
        self.class(class)?;
        for name in fields {
            let name = name.cast_into::<PyString>().map_err(PyErr::from)?;
            // `model_construct` and `del` leave fields without a value.
            let Some(item) = values.get_item(&name)? else { continue };
            self.text(&name)?;
            self.value(&item).map_err(|failure| failure.within(|| step_to(&name)))?;
        }
        for more in ["__pydantic_extra__", "__pydantic_private__"] {
            match value.getattr(more) {
                Ok(more) if more.is_instance_of::<PyDict>() => self.dict(&more)?,
                _ => self.encoder.tag(tag::NONE),
            }
        }
        Ok(())
    }

    /// A class by its module and qualified name; within the process also by identity if that
    /// name does not lead to it (local and generated classes).
    pub(super) fn class(&mut self, class: &Bound<'_, PyType>) -> Walk {
        self.module(class)?;
        let name = class.qualname()?;
        self.text(&name)?;
        if let Opaque::Intern(interner) | Opaque::RefuseButClasses(interner) = self.opaque
            && !is_found_by_name(class)?
        {
            let (id, held) = interner.intern(class)?;
            self.held.push(held);
            self.encoder.fixed(tag::INTERNED, id.to_le_bytes());
        }
        Ok(())
    }
}

impl Walker<'_> {
    /// The module of a class; for one that runs as a script (`python -m`), its real name.
    fn module(&mut self, class: &Bound<'_, PyType>) -> Walk {
        let module = class.getattr("__module__")?;
        let Ok(module) = module.cast_into::<PyString>() else {
            self.encoder.tag(tag::NONE);
            return Ok(());
        };
        if module.to_string_lossy() == "__main__" {
            let main = class.py().import("sys")?.getattr("modules")?.get_item(&module);
            let spec = main.and_then(|main| main.getattr("__spec__"));
            if let Ok(name) = spec.and_then(|spec| spec.getattr("name"))
                && let Ok(name) = name.cast_into::<PyString>()
            {
                return self.text(&name);
            }
        }
        self.text(&module)
    }
}

/// Whether `module.qualified.name` is this very class.
fn is_found_by_name(class: &Bound<'_, PyType>) -> PyResult<bool> {
    let name = class.qualname()?;
    let name = name.to_string_lossy();
    if name.contains("<locals>") {
        return Ok(false);
    }
    let modules = class.py().import("sys")?.getattr("modules")?;
    // What stands in `__module__` need not be text, nor hashable.
    let Ok(module) = class.getattr("__module__")?.cast_into::<PyString>() else {
        return Ok(false);
    };
    let Ok(module) = modules.get_item(module) else { return Ok(false) };
    let found = name.split('.').try_fold(module, |inside, name| inside.getattr(name));
    Ok(found.is_ok_and(|found| found.is(class)))
}

/// Whether `==` of a dataclass is the one that ``@dataclass`` wrote: not with
/// ``eq=False``, and not if the class brings its own.
pub(super) fn has_generated_equality(class: &Bound<'_, PyType>) -> PyResult<bool> {
    let Ok(code) = class.getattr("__eq__")?.getattr("__code__") else { return Ok(false) };
    // Where `dataclasses` of 3.11 to 3.13 compiles it. (Its file, "<string>", is also that of
    // all classes of `python -c` and `exec`.)
    code.getattr("co_qualname")?.eq("__create_fn__.<locals>.__eq__")
}

/// Whether `==` of a pydantic model is pydantic's own.
pub(super) fn has_model_equality(class: &Bound<'_, PyType>) -> PyResult<bool> {
    let pydantic = class.py().import("pydantic")?;
    if equals_as(class, &pydantic.getattr("BaseModel")?)? {
        return Ok(true);
    }
    // That of root models compares the roots' annotations besides: a class has one.
    let root = pydantic.getattr_opt("RootModel")?;
    root.map_or(Ok(false), |root| equals_as(class, &root))
}
