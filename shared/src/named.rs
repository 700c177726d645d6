//! Enums whose variants have names in configuration files.

/// An enum whose variants have names in configuration files; `from_name` takes checked names only.
macro_rules! named {
    (
        $(#[$meta:meta])*
        $vis:vis enum $type:ident {
            $($(#[$variant_meta:meta])* $variant:ident = $name:literal,)+
        }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize)]
        $vis enum $type {
            $($(#[$variant_meta])* #[serde(rename = $name)] $variant,)+
        }

        impl $type {
            pub(crate) const NAMES: &'static [&'static str] = &[$($name),+];

            /// The name that configuration files use.
            $vis const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)+
                }
            }

            pub(crate) fn from_name(name: &str) -> Self {
                match name {
                    $($name => Self::$variant,)+
                    _ => unreachable!("checked to be one of {:?}, is {name:?}", Self::NAMES),
                }
            }
        }
    };
}

pub(crate) use named;
