//! What can be told of an upload before it runs.

use std::time::Duration;

use tidemill_hostile as hostile;
use tidemill_hostile::World;
use tidemill_wasm::*;

use crate::kit::{compiled, context, engine, null_sink, thread_cpu, tight};

#[test]
fn a_plugin_is_known_by_what_it_exports() {
    let kinds = [
        (World::Partitioner, ComponentKind::Partitioner),
        (World::Filter, ComponentKind::Filter),
        (World::Consumer, ComponentKind::Consumer),
    ];
    for (world, kind) in kinds {
        assert_eq!(inspect(&hostile::baseline(world)).unwrap().kind, kind);
    }
    let imports = inspect(&hostile::relay()).unwrap().imports;
    assert!(imports.iter().any(|import| import == "tidemill:plugin/emit@0.1.0"), "{imports:?}");
}

#[test]
fn what_is_no_component_is_refused() {
    let not_a_component =
        |bytes: &[u8]| matches!(inspect(bytes), Err(InvalidComponent::NotAComponent { .. }));
    assert!(not_a_component(b""));
    assert!(not_a_component(&hostile::not_wasm()));
    assert!(not_a_component(&hostile::core_module_only()));
    let text = inspect(b"hello").unwrap_err().to_string();
    assert!(text.contains("it begins with `hell`, not with `\\0asm`") && !text.contains('\n'), "{text}");
    let module = inspect(&hostile::core_module_only()).unwrap_err().to_string();
    assert!(module.contains("tidemill plugin build"), "{module}");
    for thousandths in [1, 10, 100, 300, 500, 700, 900, 999] {
        let cut = hostile::truncated(thousandths);
        assert!(inspect(&cut).is_err(), "cut at {thousandths} of 1000");
    }
}

#[test]
fn other_worlds_are_refused() {
    let reason = |bytes: &[u8]| match inspect(bytes) {
        Err(InvalidComponent::WrongWorld { reason }) => reason,
        other => panic!("{other:?}"),
    };
    assert!(reason(&hostile::wrong_world()).contains("must export one of"));
    assert!(reason(&hostile::two_worlds()).contains("make it two plugins"));
    assert!(reason(&hostile::other_version()).contains("@0.2.0"));
}

#[test]
fn imports_beyond_the_world_are_refused_by_name() {
    for world in World::ALL {
        let error = inspect(&hostile::forbidden_import(world)).unwrap_err();
        let InvalidComponent::ForbiddenImport { import, .. } = &error else { panic!("{error:?}") };
        assert_eq!(import, "wasi:filesystem/preopens@0.2.0");
        assert!(error.to_string().contains("wasi:filesystem/preopens@0.2.0"));
    }
    let error = inspect(&hostile::filter_that_emits()).unwrap_err();
    let wanted = InvalidComponent::ForbiddenImport {
        import: "tidemill:plugin/emit@0.1.0".to_owned(),
        kind: ComponentKind::Filter,
    };
    assert_eq!(error, wanted);
}

#[tokio::test]
async fn other_types_under_the_contracts_names_are_refused() {
    let filter = compiled(&hostile::other_types());
    let pool = FilterPool::new(filter, context(), tight(), null_sink(), 1).unwrap();
    let error = pool.apply(crate::kit::batch_of(1)).await.unwrap_err();
    assert!(matches!(error, CallError::WrongInterface(_)), "{error:?}");
}

#[test]
fn a_plugin_is_used_as_what_it_is() {
    let filter = compiled(&hostile::keep_all());
    let wrong = PartitionerPool::new(filter, context(), tight(), null_sink()).err().unwrap();
    assert_eq!(wrong.to_string(), "this plugin is a filter, not a partitioner");
}

#[test]
fn what_does_not_validate_does_not_compile() {
    let broken = hostile::does_not_validate();
    inspect(&broken).expect("its surface is good");
    assert!(matches!(engine().compile_here(&broken), Err(CompileError::Failed(_))));
}

#[tokio::test]
async fn a_plugin_describes_itself() {
    let description = compiled(&hostile::keep_all()).describe(&tight()).await.unwrap();
    assert_eq!(description.summary, "for tests");
    assert!(description.config.is_empty());
}

#[tokio::test]
async fn a_description_that_never_comes_is_not_waited_for() {
    let error = compiled(&hostile::loops_in_describe(World::Filter)).describe(&tight()).await.unwrap_err();
    assert_eq!(error, CallError::TimedOut { limit_ms: 50 });
    let error = compiled(&hostile::traps_in_start(World::Filter)).describe(&tight()).await.unwrap_err();
    assert!(matches!(error, CallError::Trapped { .. }), "{error:?}");
}

#[tokio::test]
async fn a_configuration_is_accepted_or_refused_at_deploy_time() {
    for world in World::ALL {
        let good = compiled(&hostile::baseline(world));
        let fields = good.validate_config(&context(), &tight(), null_sink()).await.unwrap();
        assert_eq!(fields, Fields::ALL);
        let picky = compiled(&hostile::refuses_its_config(world));
        let error = picky.validate_config(&context(), &tight(), null_sink()).await.unwrap_err();
        assert_eq!(error, ConfigError::Refused("not this one".to_owned()));
        let slow = compiled(&hostile::loops_in_init(world));
        let error = slow.validate_config(&context(), &tight(), null_sink()).await.unwrap_err();
        assert_eq!(error, ConfigError::Call(CallError::TimedOut { limit_ms: 50 }));
    }
}

#[test]
fn more_memory_than_anybody_can_have_is_refused_at_once() {
    let component = hostile::large_from_the_start(World::Consumer, 1 << 14);
    assert_eq!(inspect(&component).unwrap().initial_memory_bytes, 1 << 30);
    let error = engine().compile_here(&component).unwrap_err();
    assert_eq!(error, CompileError::Load(LoadError::TooMuchMemory { bytes: 1 << 30, bytes_max: 256 << 20 }));
}

#[tokio::test]
async fn what_overran_is_not_tried_again_at_once() {
    let limits = PluginLimits { init_time: Duration::from_millis(500), ..tight() };
    let slow = compiled(&hostile::loops_in_init(World::Filter));
    let loops = compiled(&hostile::loops_in_describe(World::Filter));
    let mut ran = Vec::new();
    for _ in 0..2 {
        let begun = thread_cpu();
        slow.validate_config(&context(), &limits, null_sink()).await.unwrap_err();
        loops.describe(&limits).await.unwrap_err();
        ran.push(thread_cpu() - begun);
    }
    assert!(ran[0] > Duration::from_millis(500) && ran[1] < Duration::from_millis(50), "{ran:?}");
}
